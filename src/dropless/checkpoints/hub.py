"""Models of the Hugging Face hub, fetched through `huggingface_hub` into its own cache."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from dropless.checkpoints.progress import Progress, silent
from dropless.errors import DownloadError, ModelNotFoundError

# Weights as safetensors, configurations, and every form of tokenizer and chat template.
_PATTERNS = ("*.safetensors", "*.json", "*.tiktoken", "*.model", "*.txt", "*.jinja")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(spec: str) -> bool:
    """Whether the text has the form `org/name`."""
    return _HUB_ID.fullmatch(spec) is not None


def pull_from_hub(
    hub_id: str, progress: Progress = silent, *, patterns: Sequence[str] = _PATTERNS
) -> Path:
    """The local folder of a hub model, fetched as far as the hub's cache lacks it: the files whose
    names match one of `patterns`.

    `huggingface_hub` draws its own progress bars on a terminal.

    Raises:
        ModelNotFoundError: the hub has no such model, or it needs permission.
        DownloadError: the hub cannot be reached, or the disk is full.
    """
    # Here and not above: the library takes longer to import than everything else together.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    progress(f"fetching {hub_id} from the hub", 0, None)
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(patterns)))
    except GatedRepoError as error:
        raise ModelNotFoundError(
            f"{hub_id} is gated: accept its terms on its hub page, then log in with"
            " `huggingface-cli login`"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelNotFoundError(
            f"the hub has no model {hub_id} (or it is private: log in with"
            " `huggingface-cli login`); `dropless models` lists models that install by name"
        ) from error
    except LocalEntryNotFoundError as error:
        raise DownloadError(
            f"{hub_id} is not in the hub's cache on this machine and the hub cannot be reached;"
            " check the network, or name a local folder"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise DownloadError(f"could not fetch {hub_id} from the hub: {error}") from error
