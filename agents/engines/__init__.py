"""Who writes a collector's texts, behind one protocol: the project's decoder or a vLLM server. May import ``agents.lm``."""
