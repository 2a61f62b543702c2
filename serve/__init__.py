"""The Ray Serve application: `serve.app:build` makes it, `python -m serve` runs it on this machine.

The routes and what they answer are in `serve.http`, which knows no Ray; everything behind them is in `cong.service`.
"""
