"""Reports of synthetic tests, and a parser of HTML pages."""

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import torch

from evaluation.accumulator import EvaluatedBatch
from evaluation.bands import BandMeter
from evaluation.baselines import ComparisonTable
from evaluation.image_metrics import batch_metrics
from evaluation.mixture import PredictedImages
from evaluation.sample_records import SampleImages, SampleRecord, choose_samples
from evaluation.split_metrics import SplitMetrics
from model.predictions import Gaussian, Mean
from report.cards import Placeholders
from report.test_page import TestReport

SIZE, N_DATES = 24, 3


class Page(HTMLParser):
    """The elements of a page: tags with their attributes, the visible text, and the levels of headings."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text, self.levels, self.code = "", [], []
        self._hidden = ""
        self.raw = path.read_text(encoding="utf-8")
        self.feed(self.raw)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag in ("style", "script"):
            self._hidden = tag
        if tag in ("h1", "h2", "h3", "h4", "h5", "h6"):
            self.levels.append(int(tag[1]))

    def handle_endtag(self, tag):
        if tag == self._hidden:
            self._hidden = ""

    def handle_data(self, data):
        if self._hidden:
            self.code.append(data)
        else:
            self.text += data

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def check_page(path: Path) -> Page:
    """Check that a page is self-contained and accessible: images with text, headings that skip no level."""
    page = Page(path)
    images = page.named("img")
    assert images
    for image in images:
        assert image["src"].startswith("data:image/")
        assert len(image["alt"].strip()) > 5
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name, "data:")
            assert value.startswith(("data:", "#")), (tag, name, value[:80])
    assert not any("http" in code or "@import" in code or "url(" in code for code in page.code)
    assert page.levels[0] == 1
    assert page.levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(page.levels[:-1], page.levels[1:], strict=True))
    labels = {attributes.get("aria-label", "") for attributes in page.named("input")}
    assert "" not in labels
    return page


def fake_report(
    title: str = "run",
    *,
    variance: bool = True,
    radar: bool = True,
    n: int = 5,
    size: int = SIZE,
    n_dates: int = N_DATES,
) -> TestReport:
    """A test of n samples, sample k with an error of (k + 1) hundredths; the predicted deviation is 0.02."""
    generator = torch.Generator().manual_seed(0)
    metrics, table, bands = SplitMetrics(), ComparisonTable("net"), BandMeter()
    images = {}
    for number in range(n):
        target = torch.rand(1, 1, 13, size, size, generator=generator) * 0.3
        mean = target + 0.01 * (number + 1) * torch.randn(target.shape, generator=generator).sign()
        total = torch.full_like(mean, 0.02**2)
        masks = torch.zeros(1, n_dates, size, size)
        masks[:, 0, size // 3 :], masks[:, :, size // 2 :] = 1, 1
        cover = tuple(np.linspace(0.1, 0.9, n_dates).tolist())
        coverage = torch.tensor([cover])
        batch = EvaluatedBatch(target, Gaussian(mean, total) if variance else Mean(mean), masks, coverage)
        for accumulator in (metrics, table, bands):
            accumulator.update(batch)
        for name in ("least_cloudy", "mean"):
            table.add(name, batch_metrics(target, target + 0.2), coverage)
        days = tuple(f"2018-01-{date % 28 + 1:02d}" for date in range(n_dates))
        row = {name: batch.metrics[0][name] for name in ("RMSE", "MAE", "PSNR", "SAM", "SSIM")}
        record = SampleRecord(number, number, "ROIs1868/73", str(number), days, "2018-06-21", cover, row)
        half = total[0, 0].numpy() / 2
        prediction = PredictedImages(mean[0, 0].numpy(), *((half, half, 2 * half) if variance else ()))
        inputs = np.random.default_rng(number).random((n_dates, 13, size, size), np.float32)
        backscatter = np.full((n_dates, size, size), -12.5, np.float32) if radar else None
        images[number] = SampleImages(
            record,
            target[0, 0].numpy(),
            {"net": prediction},
            inputs,
            backscatter,
            rmse={"net": record.rmse},
            baseline=("mean", 0.2),
        )
    chosen = choose_samples([sample.record for sample in images.values()])
    return TestReport(
        kicker="Test report",
        title=title,
        facts=[("model", "net"), ("samples", str(n))],
        metrics={**metrics.compute(), "bands": bands.compute()},
        comparison=table.compute(),
        networks=["net"],
        samples=[replace(images[record.id], label=label) for label, record in chosen],
        command=f"python test_reconstruct.py --experiment_name {title}",
        command_note="The command line of this test:",
        configuration={"experiment_name": title, "input_t": n_dates},
        placeholders=Placeholders(radar="No radar here."),
    )
