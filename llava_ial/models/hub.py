"""Putting a finished folder on the Hugging Face hub; only ever because somebody asked for it by name."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from llava_ial.errors import UserError
from llava_ial.manifest import MANIFEST


def push_folder(folder: Path, name: str) -> str:
    """Uploads a finished folder into a private repository, without its checkpoints; returns its address.

    Args:
        folder: With a manifest.
        name: ``owner/name``; made if it is not there.

    Raises:
        UserError: The folder is unfinished, or the hub refuses.
    """
    if not (folder / MANIFEST).exists():
        raise UserError(f"{folder}: unfinished, nothing is uploaded")
    api = HfApi()
    try:
        address = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, ignore_patterns=["checkpoints/**", "*.jsonl", "run.json"])
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise UserError(f"--push_to_hub {name}: {str(error).splitlines()[0]}; log in with 'hf auth login'") from error
    return str(address)
