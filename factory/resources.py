"""Where the files that ship beside the code live, in a clone and in an installed wheel alike."""

from pathlib import Path


def specs_folder() -> Path:
    """The packaged specs, seeds and audits: `specs/` of a clone, `factory/specs/` of a wheel."""
    here = Path(__file__).parent
    return here / "specs" if (here / "specs").is_dir() else here.parent / "specs"
