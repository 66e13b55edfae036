"""Control tasks: any Gymnasium vector environment, small networks, PPO and TRPO. May import the core, functional and
runs."""
