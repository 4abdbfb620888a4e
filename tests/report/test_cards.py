"""Scales of sample cards."""

from report.cards import make_cards
from tests.support.report_pages import fake_report


def test_scales_are_shared_by_all_cards():
    report = fake_report()
    cards = make_cards(report.samples, report.placeholders)
    # 97 % of all errors and deviations lie below 0.05: errors of 0.01, 0.03, 0.05 and deviations of 0.014 and 0.02
    assert cards.scale.ticks == ("0", "0.01", "0.02", "0.03", "0.04", "\N{GREATER-THAN OR EQUAL TO} 0.05")
    assert cards.radar_scale.ticks == ("\N{MINUS SIGN}25", *(f"\N{MINUS SIGN}{n}" for n in (20, 15, 10, 5)), "0")
    totals = {
        picture.src
        for card in cards.cards
        for group in card.results
        for picture in group.pictures
        if picture.caption == "Total deviation"
    }
    assert len(totals) == 1  # the same deviation has the same colour in all cards
