"""The chat: a page on which a photo goes in and its address comes out, and on which one can go on asking.

    python -m serve.chat --model runs/demo/stage2 --examples runs/demo/data
    python -m serve.chat --model runs/demo/stage2 --host 0.0.0.0 --port 8080      open to the whole network

Without --model it opens the model that `make demo` has made. Ctrl-C ends it and deletes what was uploaded. Programs ask
the same server: docs/serving.md.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))  # read once, when torch is imported
# Read when Gradio is imported: no statistics leave this computer.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import importlib.util
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr
import torch
from PIL import Image
from transformers.utils import logging as transformers_logging

from llava_ial.config import parse_config
from llava_ial.conversation import user_question
from llava_ial.errors import UserError, run_command
from llava_ial.inference import AddressPredictor, choose_device
from llava_ial.manifest import MANIFEST
from llava_ial.models.quantized import QUANTIZATIONS
from llava_ial.street_map import pan_and_zoom_script
from serve import texts
from serve.api import add_probes
from serve.examples import find_examples
from serve.logins import load_logins
from serve.page import ChatPage, PageOptions
from serve.talk import BATCH_SIZE
from serve.uploads import Uploads, open_folder

DEMO_MODEL, DEMO_DATA = Path("runs/demo/stage2"), Path("runs/demo/data")
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# More than any camera writes, and little enough to hold some at once.
MAX_UPLOAD = "50mb"
# Conversations that are kept, 80 KB each; each call of a program without a session of its own counts as one, too.
MAX_SESSIONS = 1000
# Each answer keeps a thread of Gradio busy, which has 40.
MAX_BATCH_SIZE = 32
STYLE = Path(__file__).with_name("page.css")
# Bold and not semibold: Gradio 6.31 ships a semibold of this font in which most letters are missing.
FONT = gr.themes.LocalFont("Source Sans Pro", weights=(400, 700))


@dataclass
class ChatConfig:
    """Settings of the chat."""

    model: Path | None = field(
        default=None, metadata={"help": f"folder of stage 2; {DEMO_MODEL} (made by make demo) if not given"}
    )
    host: str = field(default="127.0.0.1", metadata={"help": "address to listen at; 0.0.0.0 for the whole network"})
    port: int = field(default=7860, metadata={"help": "port to listen at"})
    base: str | None = field(default=None, metadata={"help": "where the model's base is now, if it was moved"})
    device: str = field(default="auto", metadata={"help": "cpu, cuda, cuda:1 ...; auto takes a GPU where there is one"})
    dtype: str = field(
        default="auto",
        metadata={"help": f"of LLaVA's weights: {', '.join(DTYPES)}"},
    )
    quantize: str = field(
        default="none",
        metadata={
            "help": "hold the language model at four bits, 'nf4', or at eight, 'int8'; answers may change with it"
        },
    )
    examples: Path | None = field(
        default=None,
        metadata={"help": "photos to try: a folder of them, or a data set, whose test split is taken"},
    )
    tiles: str = field(
        default="",
        metadata={"help": "online background of the map, https://host/{z}/{x}/{y}.png say; its server learns which "
                  "part of town a visitor looks at; none by default"},
    )  # fmt: skip
    auth: Path | None = field(
        default=None, metadata={"help": "file of logins, a line each; `python -m serve.logins --name NAME` prints one"}
    )
    root_path: str = field(default="", metadata={"help": "path under which a reverse proxy serves the page, /chat say"})
    share: bool = field(
        default=False,
        metadata={"help": "open a public tunnel through gradio.live, whose operator sees the traffic"},
    )
    mcp: bool = field(default=False, metadata={"help": "also serve `locate` and `ask` as tools of an MCP server"})
    time_limit_s: float = field(default=120.0, metadata={"help": "an answer that takes longer is cut off"})
    batch_size: int = field(
        default=BATCH_SIZE,
        metadata={"help": "most questions that are answered at the same time, as one batch; 1: one after the other"},
    )
    max_waiting: int = field(default=64, metadata={"help": "visitors in the queue; more are told that it is full"})


def main() -> None:
    """Reads the settings, loads the model, serves until Ctrl-C."""
    (config,) = parse_config(ChatConfig, description=__doc__ or "")
    refuse_bad_settings(config)
    refuse_busy_port(config.host, config.port)
    logins = load_logins(config.auth) if config.auth else None
    examples = choose_examples(config)
    predictor = load_predictor(config)
    warm_up(predictor)
    if config.share:
        print(texts.SHARE_WARNING, file=sys.stderr)
    with open_folder() as uploads:
        options = PageOptions(examples, config.tiles, config.max_waiting, config.time_limit_s, config.batch_size)
        page = launch(predictor, config, uploads, options, logins)
        print(f"\nThe chat is open at http://{config.host}:{config.port} (Ctrl-C ends it)", flush=True)
        try:
            wait_for_end(Uploads(uploads))
        finally:
            page.close(verbose=False)
    print("The chat is closed; uploads are deleted.")


def refuse_bad_settings(config: ChatConfig) -> None:
    """Checks what needs no model.

    Raises:
        UserError: Names the setting.
    """
    if config.dtype not in DTYPES:
        raise UserError(f"--dtype {config.dtype}: one of {', '.join(DTYPES)}")
    if config.quantize not in QUANTIZATIONS:
        raise UserError(f"--quantize {config.quantize}: one of {', '.join(QUANTIZATIONS)}")
    if config.time_limit_s <= 0 or config.max_waiting < 1:
        raise UserError("--time_limit_s must be above 0 and --max_waiting at least 1")
    if not 1 <= config.batch_size <= MAX_BATCH_SIZE:
        raise UserError(f"--batch_size {config.batch_size}: from 1 to {MAX_BATCH_SIZE}")
    if config.tiles and not (config.tiles.startswith("https://") and all(f"{{{k}}}" in config.tiles for k in "zxy")):
        raise UserError(f"--tiles {config.tiles}: an https address with {{z}}, {{x}} and {{y}}")
    if config.root_path and not config.root_path.startswith("/"):
        raise UserError(f"--root_path {config.root_path}: begins with /")
    if config.mcp and importlib.util.find_spec("mcp") is None:
        raise UserError("--mcp needs the package mcp: pip install 'llava-ial[mcp]'")


def choose_examples(config: ChatConfig) -> list[Path]:
    """The photos that the page offers: those of the demo where its model is opened and no others are named."""
    if config.examples is not None:
        return find_examples(config.examples)
    return find_examples(DEMO_DATA) if config.model is None and (DEMO_DATA / MANIFEST).is_file() else []


def warm_up(predictor: AddressPredictor) -> None:
    """Looks at a grey picture once, so that the first visitor does not wait for what every first answer needs."""
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    predictor.locate(grey)
    next(predictor.stream([user_question(texts.DEFAULT_QUESTION)], grey, max_new_tokens=2), None)


def load_predictor(config: ChatConfig) -> AddressPredictor:
    """The model that the settings name.

    Raises:
        UserError: There is none, or it cannot answer.
    """
    folder = config.model or DEMO_MODEL
    if config.model is None and not (folder / MANIFEST).is_file():
        raise UserError(f"no --model given and {folder} does not exist; run `make demo` first, or name a model")
    transformers_logging.disable_progress_bar()
    predictor = AddressPredictor.from_pretrained(
        folder,
        base=config.base,
        device=choose_device(config.device),
        dtype=DTYPES[config.dtype],
        quantize=config.quantize,
    )
    if not predictor.can_answer:
        raise UserError(f"--model {folder} is a folder of stage 1, which does not talk; name one of stage 2")
    return predictor


def launch(
    predictor: AddressPredictor,
    config: ChatConfig,
    uploads: Path,
    options: PageOptions,
    logins: Callable[[str, str], bool] | None = None,
) -> gr.Blocks:
    """Opens the page in a thread of its own; ``close`` of what is returned ends it.

    Args:
        predictor: Answers.
        config: Where to listen, and how.
        uploads: Folder for uploaded photos.
        options: What the page offers.
        logins: Says whether a name and a password belong together; None lets everybody in.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    gr.set_static_paths(list(options.examples))  # served where they lie, and not deleted with what visitors uploaded
    chat = ChatPage(predictor, Uploads(uploads), options)
    page = chat.build()
    app, _, _ = page.launch(
        server_name=config.host,
        server_port=config.port,
        root_path=config.root_path or None,
        share=config.share,
        auth=logins,
        mcp_server=config.mcp,
        prevent_thread_lock=True,
        quiet=True,
        max_file_size=MAX_UPLOAD,
        state_session_capacity=MAX_SESSIONS,
        ssr_mode=False,
        enable_monitoring=False,
        footer_links=["api"],
        theme=gr.themes.Default(
            primary_hue="teal", neutral_hue="slate", radius_size="md", font=[FONT, "system-ui", "sans-serif"]
        ),
        css_paths=[STYLE],
        head=f"<script>{pan_and_zoom_script()}</script>",
    )
    add_probes(app, chat.talker)
    return page


def refuse_busy_port(host: str, port: int) -> None:
    """Checks before the model is loaded that the page can be opened.

    Raises:
        UserError: The port is taken or not allowed, or the address is not of this computer.
    """
    if not 0 < port < 65536:
        raise UserError(f"--port {port}: from 1 to 65535")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as test:
        test.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            test.bind((host, port))
        except OSError as error:
            raise UserError(f"cannot listen at {host}:{port} ({error.strerror}); choose another --port") from error


def wait_for_end(uploads: Uploads) -> None:
    """Returns at Ctrl-C or SIGTERM; until then it sweeps the uploads once a minute."""
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    while not asked.wait(timeout=60):
        uploads.sweep()


if __name__ == "__main__":
    run_command(main)
