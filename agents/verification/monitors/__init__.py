"""Error rates of the monitors of reward hacking, on good runs and on planted hacks. May import recipes and exact."""
