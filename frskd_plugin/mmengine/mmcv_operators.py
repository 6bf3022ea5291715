"""What to say where mmcv lacks its compiled operators, which mmdetection cannot do without."""

from __future__ import annotations

MISSING_OPERATORS = (
    "mmdetection needs an mmcv with compiled operators, made for exactly the torch that is installed. Make one: "
    "`pip wheel --no-cache-dir --no-build-isolation --no-deps --no-binary onedl-mmcv onedl-mmcv`, and install that "
    "file (a checkout of frskd_plugin does it by `make test-mmdet`). All of frskd_plugin but the detector works without"
)


def lacks_operators(error: BaseException) -> bool:
    """Whether an import failed because mmcv's operators are not there, or are made for another torch.

    >>> lacks_operators(ModuleNotFoundError("No module named 'mmcv._ext'"))
    True
    >>> lacks_operators(ImportError("/site/mmcv/_ext.cpython-311-x86_64-linux-gnu.so: undefined symbol: _ZN3c10"))
    True
    >>> lacks_operators(ModuleNotFoundError("No module named 'mmdet'"))
    False
    """
    text = str(error).replace("\\", "/")
    return isinstance(error, ImportError) and ("mmcv._ext" in text or "mmcv/_ext." in text)
