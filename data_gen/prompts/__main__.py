"""python -m data_gen.prompts: pins the versions of the prompts."""

from data_gen.prompts.versions import main
from mmed_jax.common.errors import run_command

if __name__ == "__main__":
    run_command(main)
