"""An environment's state as data, so that a run resumes in mid-episode. Imports nothing of ours."""
