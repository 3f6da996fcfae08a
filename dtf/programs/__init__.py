"""train.py, eval.py and conf/ of the repository, as an installed package has them: here they are links."""
