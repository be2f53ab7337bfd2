"""What other libraries say, in one line."""

from lmnoise.errors import first_line


def test_the_reason_at_the_end_of_a_long_line_stays():
    folder = "/data/" + "x" * 300
    error = ValueError(
        f'OUT_OF_RANGE: Error writing "0" at local file "{folder}": Failed writing: "{folder}/d": '
        "Failed to write 3612 bytes to file 4: File too large [os_error_code='27' spec='{...}']"
    )
    line = first_line(error)
    assert len(line) <= 300
    assert line.startswith('OUT_OF_RANGE: Error writing "0"')
    assert line.endswith("File too large")


def test_one_line():
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert first_line(ValueError("shape [3, 4] is not [3]")) == "shape [3, 4] is not [3]"
