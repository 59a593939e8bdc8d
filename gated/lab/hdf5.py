"""HDF5 files from somebody else: what is read lies in the file itself.

An HDF5 file can name other files, in links, in external storage and in virtual datasets, and HDF5 opens them without a
word. It can also name a filter that HDF5 would load as a plug-in. None of this is done here.
"""

from __future__ import annotations

from typing import Any


def within(group: Any, path: str, links: int = 16) -> Any:
    """The group or dataset at `path` below an h5py group, or None where there is none.

    Hard links and soft links are followed, at most `links` soft ones in a row.

    Raises `ValueError` where the way leads out of the file, or soft links run in a circle; says which link it is.
    """
    import h5py

    here = group.file["/"] if path.startswith("/") else group
    for name in [part for part in path.split("/") if part not in ("", ".")]:
        stored = name.encode("utf-8", "surrogateescape")
        if not isinstance(here, h5py.Group) or not here.id.links.exists(stored):
            return None
        kind, where = here.id.links.get_info(stored).type, f"{here.name.rstrip('/')}/{name}"
        if kind == h5py.h5l.TYPE_SOFT:
            if not links:
                raise ValueError(f"{where}: soft links run in a circle; link to the data themselves")
            here = within(here, here.id.links.get_val(stored).decode("utf-8", "surrogateescape"), links - 1)
        elif kind == h5py.h5l.TYPE_HARD:
            here = here[name]
        else:
            raise ValueError(
                f"{where} is a link to another file, which is not followed; "
                "copy the data into this file, with h5py's copy(..., expand_external=True)"
            )
    if isinstance(here, h5py.Dataset):
        _check(here)
    return here


def _check(dataset: Any) -> None:
    import h5py

    for wrong, what in ((dataset.external, "external storage"), (dataset.is_virtual, "a virtual dataset")):
        if wrong:
            raise ValueError(
                f"{dataset.name} is {what}: its values lie in other files, which are not read; "
                "store the values themselves in this file"
            )
    own = {
        getattr(h5py.h5z, f"FILTER_{name}")
        for name in ("DEFLATE", "SHUFFLE", "FLETCHER32", "SZIP", "NBIT", "SCALEOFFSET", "LZF")
    }
    made = dataset.id.get_create_plist()
    for number in {made.get_filter(i)[0] for i in range(made.get_nfilters())} - own:
        raise ValueError(
            f"{dataset.name} is stored with filter {number}, which HDF5 would load as a plug-in; "
            "store it again with gzip or without a filter"
        )
