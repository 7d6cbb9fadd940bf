"""Images of shards in any order: those that decode, where they lie, and what has changed since."""

import io
import pickle

import numpy as np
import pytest
from conftest import write_tar
from PIL import Image
from scored_caches import QUIET

from ltrp_core.errors import RequestError
from pipeline.inputs import find_shards
from pipeline.training_data import StagedImages, stage_images


def staged(source, folder):
    return StagedImages(stage_images(find_shards([str(source)]), folder, QUIET))


def decoded(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.mark.parametrize("source", ["shards", "photo_folder"])
def test_every_image_is_that_of_its_key(source, photographs, tmp_path, request):
    images = staged(request.getfixturevalue(source), tmp_path / "staged")
    names = [key.rpartition("/")[2] for key in images.keys]
    assert sorted(names) == sorted(photographs)
    for images_of_process in (images, pickle.loads(pickle.dumps(images))):
        for row in (11, 0, 5, 0):
            assert (images_of_process.image(row) == decoded(photographs[names[row]])).all()
        images_of_process.close()


def test_those_that_do_not_decode_are_left_out_and_listed(shards, photographs, tmp_path):
    content = photographs["cat_0"]
    members = [("a.jpg", content), ("b.jpg", content[:100]), ("c.jpg", photographs["cat_1"])]
    write_tar(shards / "part-1.tar", members)
    images = staged(shards, tmp_path / "staged")
    assert len(images) == 10
    assert [bad.key for bad in images.bad] == ["b"]
    assert (images.image(images.keys.index("c")) == decoded(photographs["cat_1"])).all()


def test_a_shard_that_changes_later_is_an_error_that_names_the_image(shards, tmp_path):
    images = staged(shards, tmp_path / "staged")
    path = shards / "part-0.tar"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(RequestError, match=rf"image '{images.keys[1]}' in .*part-0.tar.* changed"):
        images.image(1)


def test_a_staged_folder_is_used_again_only_for_the_same_shards(shards, photographs, tmp_path):
    first = staged(shards, tmp_path / "staged")
    ready = (tmp_path / "staged" / "images-staged.json").stat()
    assert staged(shards, tmp_path / "staged").identity == first.identity
    assert (tmp_path / "staged" / "images-staged.json").stat().st_ino == ready.st_ino
    write_tar(shards / "part-1.tar", [("new.jpg", photographs["cat_0"])])
    again = staged(shards, tmp_path / "staged")
    assert "new" in again.keys
    assert again.identity != first.identity


def test_no_image_at_all_is_refused(tmp_path):
    write_tar(tmp_path / "empty.tar", [("a.txt", b"no image")])
    with pytest.raises(RequestError, match="no image in 1 shard"):
        staged(tmp_path / "empty.tar", tmp_path / "staged")
