"""Trains or evaluates one experiment.

    python run_experiment.py --config=configs/fundus256.py:demo --workdir=runs/demo
    python run_experiment.py --config=configs/fundus256.py --config.data.dir=DIR --workdir=DIR
    python run_experiment.py --config=... --workdir=DIR --mode=evaluate

The same command continues a run that was interrupted, and the same command on every host of a TPU
slice or in every task of a Slurm job is one run; elsewhere --coordinator_address, --num_processes
and --process_id say who belongs together.
"""

from vae.cli.train import main

if __name__ == "__main__":
    main()
