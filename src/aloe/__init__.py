"""aloe builds, aligns, measures and serves open healthcare language models. Start reading at stages/__init__.py."""

import os

# Nothing that aloe imports may phone home. This must be set before those libraries are imported, however aloe is used.
for _name in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "LANCEDB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_name, "1")
