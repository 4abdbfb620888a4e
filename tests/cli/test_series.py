"""`reconstruct_scene.py --every_date` as a command: killed at each of its steps, and resumed."""

from reconstruct_scene import main
from tests.support.cli_cases import call
from tests.support.series_cases import assert_same_series, write_series_files


def test_a_killed_series_is_resumed_to_the_same_bits(commands, scene_run, tmp_path):
    scene, whole, out = write_series_files(tmp_path), tmp_path / "whole", tmp_path / "maps"
    assert call(main, *scene.line(scene_run, whole)) == 0
    words = scene.line(scene_run, out)
    # amid the tiles of a batch of which some images are predicted, the maps of the third image, the store, the end
    kills = (("after", "*", 30), ("after", "total_std.tif", 3), ("before", "series.zarr", 1))
    for kill in (*kills, ("after", "collection.json", 1)):
        killed = commands.start("reconstruct_scene.py", *words, kill_at=kill)
        assert killed.code == -9, killed.text
        assert not (out / "reconstruction.json").exists()
    assert "going on where an earlier command was interrupted" in killed.text
    assert "0.00 megapixels in" in killed.text
    done = commands.run("reconstruct_scene.py", *words).ok()
    assert "5 images: " in done.text
    assert_same_series(out, whole)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())
    assert "is complete already" in commands.run("reconstruct_scene.py", *words).ok().text
    other = commands.run("reconstruct_scene.py", *words, "--window 2")
    assert other.code == 2
    assert "other --every_date, --composite, --window or --zarr" in other.text
