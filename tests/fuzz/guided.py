"""One kind of file fuzzed under the guidance of coverage, by atheris (pip install atheris; Linux, Python to 3.12)."""

import sys
import tempfile
from pathlib import Path


def guide(kind):
    """Fuzz the readers of one kind until Ctrl-C or a fault, whose input libFuzzer leaves in the working folder."""
    try:
        import atheris
    except ImportError:
        sys.exit("--guided needs atheris: pip install atheris")
    with atheris.instrument_imports(include=["fastfid", "sit_rl"]):
        from tests.fuzz.readers import READERS
        from tests.fuzz.runner import HANG_SECONDS, MOST_BYTES, put, told_by
        from tests.fuzz.seeds import seeds

    with tempfile.TemporaryDirectory() as folder:
        known = Path(folder) / "seeds"
        known.mkdir()
        for i, content in enumerate(seeds(kind)):
            (known / str(i)).write_bytes(content)

        def one_input(content):
            for read in READERS[kind]:
                path = put(Path(folder) / "tried", kind, content)  # an earlier one may be mapped
                told = told_by(read, path)
                if told not in ("read", "refused"):
                    raise RuntimeError(f"{read.__name__}: {told}")

        limits = [f"-timeout={HANG_SECONDS:.0f}", f"-rss_limit_mb={MOST_BYTES // 10**6}", "-max_len=1000000"]
        atheris.Setup([sys.argv[0], *limits, str(known)], one_input)
        atheris.Fuzz()
