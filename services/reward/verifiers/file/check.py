"""A process that loads a reward file and says whether it can be used. `python -m services.reward.verifiers.file.check`.

The settings come in as JSON. The answer is {"error": text or null, "function": its name, "batched": whether it takes
many items at once}.
"""

import json
import os
import sys

from services.reward.printed import Printed
from services.reward.verifiers.file.function import load
from services.reward.verifiers.file.verifier import FileSettings
from shared.errors import InvalidInputError
from shared.process.orphans import die_with_parent


def main() -> None:
    parent, printed = map(int, sys.argv[1:])
    die_with_parent(parent)
    answers = os.dup(1)
    settings = FileSettings.model_validate_json(sys.stdin.buffer.read())
    Printed(printed).become_output()
    try:
        function = load(settings.file, settings.source or "", settings.function)
        name, batched, fault = function.name, function.is_batched, None
    except InvalidInputError as error:
        name, batched, fault = "", False, str(error)
    os.write(answers, json.dumps({"error": fault, "function": name, "batched": batched}).encode())
    os._exit(0)  # threads that the file has started do not keep us


if __name__ == "__main__":
    main()
