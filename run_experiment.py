"""Trains or evaluates one experiment.

    python run_experiment.py --config=configs/fundus256.py:demo --workdir=runs/demo
    python run_experiment.py --config=configs/fundus256.py --config.data.dir=DIR --workdir=DIR
    python run_experiment.py --config=... --workdir=DIR --mode=evaluate

The same command continues an interrupted run. Started on every host of a TPU slice or in every task
of a Slurm job, it is one run. On other clusters --coordinator_address, --num_processes and
--process_id connect the processes of a run.
"""

from vae.cli.train import main

if __name__ == "__main__":
    main()
