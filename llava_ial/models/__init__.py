"""Networks and losses."""

import logging
import warnings

# Two remarks of libraries that every command of the project would show and no user can act on (2026-11):
# bitsandbytes 0.50 misses a kernel for 4 bits on the CPU, peft 0.21 reads an attribute that transformers 5 renamed.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
