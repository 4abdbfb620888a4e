"""Which dates each image of a series is made from."""

from datetime import date

from data.constants import DATE_ORIGIN
from scenes.inputs.dates import date_labels
from scenes.output_images import image_of_all, images_of_dates, images_of_periods


def days(*texts: str) -> list[int]:
    return [(date.fromisoformat(text) - DATE_ORIGIN).days for text in texts]


def test_the_image_of_a_scene_has_all_dates_and_keeps_the_latest():
    image = image_of_all([5, 9, 9])
    assert (image.name, image.dates, image.kept, image.kept_position) == ("", (0, 1, 2), 2, 2)
    assert (image.first_day, image.last_day) == (5, 9)


def test_each_date_has_the_nearest_dates_and_itself():
    series = [0, 10, 20, 22, 60, 61]
    images = images_of_dates(series, date_labels(series), 3)
    assert [image.dates for image in images] == [(0, 1, 2), (0, 1, 2), (1, 2, 3), (1, 2, 3), (3, 4, 5), (3, 4, 5)]
    assert [image.kept for image in images] == list(range(6))
    assert [image.middle for image in images] == series
    assert images[0].name == "2014-04-03"
    assert [image.dates for image in images_of_dates(series[:2], date_labels(series[:2]), 3)] == [(0, 1), (0, 1)]


def test_of_two_equally_near_dates_the_earlier_one_is_taken_and_an_image_of_the_same_day_never_displaces_its_own():
    assert images_of_dates([0, 10, 20], "abc", 2)[1].dates == (0, 1)
    images = images_of_dates([7, 7, 7], date_labels([7, 7, 7]), 1)
    assert [image.dates for image in images] == [(0,), (1,), (2,)]
    assert [image.name for image in images] == ["2014-04-10", "2014-04-10_2", "2014-04-10_3"]


def test_months_take_their_own_dates_first():
    series = days("2018-01-31", "2018-02-01", "2018-02-26", "2018-02-28", "2018-03-01", "2018-05-15")
    images = {image.name: image for image in images_of_periods(series, "month", 2)}
    assert list(images) == ["2018-01", "2018-02", "2018-03", "2018-05"]  # none of April
    february = images["2018-02"]
    assert february.dates == (1, 2)  # 14 days from the middle and 11; not 2018-01-31
    assert (february.kept, february.first_day, february.last_day) == (2, *days("2018-02-01", "2018-02-28"))
    assert images["2018-01"].dates == (0, 1)  # its only date, and the nearest of its neighbour
    assert (images["2018-05"].dates, images["2018-05"].kept) == ((4, 5), 5)


def test_seasons_are_of_three_months_and_winter_belongs_to_the_year_of_its_january():
    series = days("2018-11-30", "2018-12-01", "2019-02-28", "2019-03-01", "2019-06-01", "2020-02-29")
    images = images_of_periods(series, "season", 1)
    assert [image.name for image in images] == ["2018-SON", "2019-DJF", "2019-MAM", "2019-JJA", "2020-DJF"]
    assert (images[1].first_day, images[1].last_day) == tuple(days("2018-12-01", "2019-02-28"))
    assert (images[3].first_day, images[3].last_day) == tuple(days("2019-06-01", "2019-08-31"))
    assert images[4].last_day == days("2020-02-29")[0]
