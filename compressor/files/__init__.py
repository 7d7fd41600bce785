"""Files: those of strangers are opened here, and all that is written is written here."""

from compressor.files.checksums import (
    append_line,
    continue_lines,
    cut_lines,
    is_sealed,
    line_of,
    read_lines,
    read_sealed,
    write_sealed,
)
from compressor.files.folders import (
    check_folder,
    claim_folder,
    prepare_folder,
    remove_leftovers,
    require_writable,
    user_cache_dir,
)
from compressor.files.reading import open_regular, parse_toml, read_bytes, read_head, read_json, read_text, read_toml
from compressor.files.scratch import scratch_folder
from compressor.files.writing import replace_files_when_whole, replace_when_whole, write_text

__all__ = [
    "append_line",
    "check_folder",
    "claim_folder",
    "continue_lines",
    "cut_lines",
    "is_sealed",
    "line_of",
    "open_regular",
    "parse_toml",
    "prepare_folder",
    "read_bytes",
    "read_head",
    "read_json",
    "read_lines",
    "read_sealed",
    "read_text",
    "read_toml",
    "remove_leftovers",
    "replace_files_when_whole",
    "replace_when_whole",
    "require_writable",
    "scratch_folder",
    "user_cache_dir",
    "write_sealed",
    "write_text",
]
