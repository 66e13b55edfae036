"""Who writes a collector's texts, behind one protocol: our decoder or a vLLM server. May import ``agents.lm``."""
