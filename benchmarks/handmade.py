"""Hand-written architectures of the survey, which timm and transformers lack: the catalogue."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """Where a network is made: a function of a module of this folder.

    The function returns the module, example inputs, and for each input the names of its dynamic axes.
    """

    module: str
    function: str


_IMAGES = "unet espcn detector pointnet vae diffusion_unet convolutional_autoencoder siamese patch_mixer capsule"
_SEQUENCES = (
    "wavenet tcn lstm_tagger gru_tagger dlrm mixture_of_experts conformer selective_scan cached_decoder seq2seq "
    "tacotron_decoder kan"
)

NETWORKS: dict[str, Entry] = {
    **{n: Entry("handmade_images", n) for n in _IMAGES.split()},
    **{n: Entry("handmade_sequences", n) for n in _SEQUENCES.split()},
}
