"""Weights by site that are read from an open file when they are first asked for."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor

from instantstyle.blocks import Site
from instantstyle.weights.tensor_files import TensorFile, first_row


class LazyWeights(Mapping[Site, Tensor]):
    """Weights that are read from an open file when they are first asked for, and then held."""

    def __init__(
        self,
        file: TensorFile,
        names: Mapping[Site, str],
        dtype: torch.dtype,
        device: str | torch.device,
        kept: ExitStack,
    ) -> None:
        self.held: dict[Site, Tensor] = {}
        self._file, self._names, self._to, self._kept = file, names, (device, dtype), kept

    def __getitem__(self, site: Site) -> Tensor:
        if site not in self.held:
            self.held[site] = self._file.read(self._names[site]).to(*self._to)
        return self.held[site]

    def __contains__(self, site: object) -> bool:
        return site in self._names

    def __iter__(self) -> Iterator[Site]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def first_row(self, site: Site) -> Tensor:
        """The first row of a site's weights, read and not held: enough to tell one adapter from another."""
        return first_row(self._file, self._names[site])
