"""The chat: a page on which a photo goes in and its address comes out, and on which one can go on asking.

    python -m serve.chat --model runs/demo/stage2
    python -m serve.chat --model runs/demo/stage2 --host 0.0.0.0 --port 8080      open to the whole network

Without --model it opens the model that `make demo` has made. Ctrl-C ends it and deletes what was uploaded.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))  # read once, when torch is imported
# Read when Gradio is imported: no statistics leave this computer.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import signal
import socket
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr
from transformers.utils import logging as transformers_logging

from llava_ial.config import parse_config
from llava_ial.errors import UserError, run_command
from llava_ial.inference import AddressPredictor, choose_device
from llava_ial.manifest import MANIFEST
from serve.page import ChatPage

DEMO_MODEL = Path("runs/demo/stage2")
MAX_UPLOAD = "64mb"
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


def main() -> None:
    """Reads the settings, loads the model, serves until Ctrl-C."""
    (config,) = parse_config(ChatConfig, description=__doc__ or "")
    refuse_busy_port(config.host, config.port)
    predictor = load_predictor(config)
    with tempfile.TemporaryDirectory(prefix="llava-ial-uploads-") as uploads:
        page = launch(predictor, config.host, config.port, Path(uploads))
        print(f"\nThe chat is open at http://{config.host}:{config.port} (Ctrl-C ends it)", flush=True)
        try:
            wait_for_end()
        finally:
            page.close(verbose=False)
    print("The chat is closed; uploads are deleted.")


def load_predictor(config: ChatConfig) -> AddressPredictor:
    """The model that the settings name.

    Raises:
        UserError: There is none, or it cannot answer.
    """
    folder = config.model or DEMO_MODEL
    if config.model is None and not (folder / MANIFEST).is_file():
        raise UserError(f"no --model given and {folder} does not exist; run `make demo` first, or name a model")
    transformers_logging.disable_progress_bar()
    predictor = AddressPredictor.from_pretrained(folder, base=config.base, device=choose_device(config.device))
    if not predictor.can_answer:
        raise UserError(f"--model {folder} is a folder of stage 1, which does not talk; name one of stage 2")
    return predictor


def launch(predictor: AddressPredictor, host: str, port: int, uploads: Path) -> gr.Blocks:
    """Opens the page in a thread of its own; ``close`` of what is returned ends it.

    Args:
        predictor: Answers.
        host: Address to listen at.
        port: Port to listen at.
        uploads: Folder for uploaded photos.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    page = ChatPage(predictor).build()
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        prevent_thread_lock=True,
        quiet=True,
        max_file_size=MAX_UPLOAD,
        ssr_mode=False,
        enable_monitoring=False,
        footer_links=["api"],
        theme=gr.themes.Default(
            primary_hue="teal", neutral_hue="slate", radius_size="md", font=[FONT, "system-ui", "sans-serif"]
        ),
        css_paths=[STYLE],
    )
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


def wait_for_end() -> None:
    """Returns at Ctrl-C or SIGTERM."""
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    while not asked.wait(timeout=1):
        pass


if __name__ == "__main__":
    run_command(main)
