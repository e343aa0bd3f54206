"""The files of data sets that are downloaded: where each can be had, and what it holds."""

from __future__ import annotations

from dataclasses import dataclass

#: Training images and labels, test images and labels, with the size of their content in bytes.
_IDX_FILES = (
    ("train-images-idx3-ubyte.gz", 16 + 60_000 * 28 * 28),
    ("train-labels-idx1-ubyte.gz", 8 + 60_000),
    ("t10k-images-idx3-ubyte.gz", 16 + 10_000 * 28 * 28),
    ("t10k-labels-idx1-ubyte.gz", 8 + 10_000),
)


@dataclass(frozen=True)
class Source:
    """One gzip file of a data set.

    What is checked is the content without its compression: mirrors have packed the same content
    in several ways.

    Attributes:
        path: Its place below the cache directory and below ``EDGEKILN_DATA``, such as
            ``mnist/train-images-idx3-ubyte.gz``.
        urls: Where it can be had, in the order in which they are tried.
        sha256: SHA-256 of the uncompressed content, 64 hexadecimal digits.
        size_bytes: Size of the uncompressed content.
    """

    path: str
    urls: tuple[str, ...]
    sha256: str
    size_bytes: int


def _idx_sources(
    name: str, mirrors: tuple[str, ...], digests: tuple[str, str, str, str]
) -> tuple[Source, ...]:
    return tuple(
        Source(f"{name}/{file}", tuple(mirror + file for mirror in mirrors), sha256, size_bytes)
        for (file, size_bytes), sha256 in zip(_IDX_FILES, digests, strict=True)
    )


#: Data set to its files: training images and labels, test images and labels.
IDX_SOURCES = {
    "mnist": _idx_sources(
        "mnist",
        (
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
        ),
        (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    "fashion_mnist": _idx_sources(
        "fashion_mnist",
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        ),
        (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
}
