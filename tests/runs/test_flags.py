"""What is said of the flags before TensorFlow is loaded."""

import pytest

from unet_core.errors import UserError
from unet_core.runs.flags import check_flags
from unet_core.settings import RunConfig


def test_folder_whose_name_is_no_text_is_refused_before_it_is_stored():
    # As `os.fsdecode` gives Latin-1's a with dots, on Linux.
    config = RunConfig.of(
        run_dir="runs/zelle_\udce4", synthetic_data=True, classes="0:background,255:cell"
    )
    with pytest.raises(UserError, match=r"`run_dir` \(runs/zelle_%E4\) is not text in UTF-8"):
        check_flags(config)
    check_flags(config.replace(run_dir="runs/z\u00e4lle"))
