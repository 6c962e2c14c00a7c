"""What videos are called: found beside the features that their codes were made of, or in a file named.

Beside ``F/test_feats.h5`` stands ``F/test_names.txt``, line i is video i; of features in several files, each
has its own.
"""

import json
from pathlib import Path

from formats.codefile import CodeFile, read_attributes
from formats.files import BadInput, expand, read_lines


def feature_files(path: Path) -> list[Path]:
    """The feature files that codes were made of; none where it does not say.

    Raises:
        BadInput: what it says is damaged.
    """
    try:
        sources = json.loads(read_attributes(path)["sources"] or "[]")
        return [expand(name) for name in sources]
    except (ValueError, TypeError):
        raise BadInput(f"{path}: damaged: 'sources' is no list of feature files") from None


def read_names(file: CodeFile, given: Path | None) -> list[str] | None:
    """The names of the videos of a file of codes; None where there are none.

    Args:
        file: the codes.
        given: file of the names; None: beside the features.

    Raises:
        BadInput: a file cannot be read, or there are more or fewer names than videos.
    """
    if given:
        paths = [given]
    else:
        features = feature_files(file.path)
        paths = [path.with_name(f"{path.stem.removesuffix('_feats')}_names.txt") for path in features]
        if not any(path.exists() for path in paths):
            return None
    names = [line for path in paths for line in read_lines(path)]
    if len(names) != len(file):
        where = ", ".join(map(str, paths))
        raise BadInput(f"{where}: expected {len(file)} names, one a line, found {len(names)}")
    return names
