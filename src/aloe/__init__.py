"""aloe builds, aligns, measures and serves open healthcare language models. Start reading at stages.py."""
