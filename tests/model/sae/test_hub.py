import pytest

from sparsecraft.core.errors import CheckpointError
from sparsecraft.model.sae.hub import local_copy


def test_a_path_wins_over_an_id(tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert local_copy("org/name").resolve() == (tmp_path / "org" / "name").resolve()


def test_a_subfolder_that_is_missing_names_those_that_are_there(tmp_path):
    (tmp_path / "layers.3").mkdir()
    with pytest.raises(CheckpointError, match=r"no folder 'layers\.4'\. It has layers\.3\."):
        local_copy(tmp_path, "layers.4")


@pytest.mark.parametrize("source", ["/no/such/place", "./nothing", "just-a-name", "../up/there"])
def test_what_is_neither_path_nor_id_is_named(source):
    with pytest.raises(CheckpointError, match=f"there is no directory {source}"):
        local_copy(source)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Stands in for the hub; returns the calls that it got."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    calls = []

    def download(repository, **options):
        calls.append((repository, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return calls


def test_a_folder_behind_the_id_is_all_that_is_downloaded(hub, tmp_path):
    (tmp_path / "layer_20" / "width_16k").mkdir(parents=True)
    (tmp_path / "layer_20" / "width_16k" / "params.npz").write_bytes(b"")
    found = local_copy("google/gemma-scope-2b-pt-res/layer_20", "width_16k")
    assert found == tmp_path / "layer_20" / "width_16k"
    repository, options = hub[0]
    assert repository == "google/gemma-scope-2b-pt-res"
    assert options["allow_patterns"] == ["layer_20/width_16k/*"]


def test_a_folder_that_the_repository_lacks_is_named(hub):
    with pytest.raises(CheckpointError, match=r"has no autoencoder in 'layers\.99'"):
        local_copy("org/name", "layers.99")


def test_offline_is_said(monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def refuse(repository, **options):
        raise OSError("offline mode is enabled")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=r"could not be downloaded.*offline mode.*local copy"):
        local_copy("org/name")
