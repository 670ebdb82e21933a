"""SteadyRL: reinforcement learning for language models that stays stable."""

__version__ = "0.1.0"
