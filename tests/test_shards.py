"""Shares of a list."""

import pathlib

import pytest

from unet_core.errors import UserError
from unet_core.shards import Shard, check_complete, files_of, interleaved


class TestShard:
    def test_is_every_nth_item_from_its_number_on_counted_from_1(self):
        assert [Shard(n, 3).of("abcdefgh") for n in (1, 2, 3)] == ["adg", "beh", "cf"]

    @pytest.mark.parametrize("length", range(9))
    @pytest.mark.parametrize("count", [1, 2, 5])
    def test_shares_are_disjoint_and_together_all_of_them_in_their_order(self, length, count):
        items = list(range(length))
        parts = [Shard(n, count).of(items) for n in range(1, count + 1)]
        assert interleaved(parts) == items
        assert max(map(len, parts)) - min(map(len, parts)) <= 1

    def test_is_read_as_it_is_written(self):
        assert Shard.parse("3/16") == Shard(3, 16)
        assert str(Shard.parse("03/16")) == "3/16"

    @pytest.mark.parametrize(
        "text", ["", "0/16", "17/16", "3", "3/", "1/2/3", "²/3", "1/1000000000"]
    )
    def test_what_is_none_is_one_message(self, text):
        with pytest.raises(UserError, match=r"must be NUMBER/COUNT .* counted from 1"):
            Shard.parse(text)


class TestFiles:
    def test_are_found_by_share_in_the_order_of_their_numbers(self, tmp_path):
        for shard in (Shard(10, 11), Shard(2, 11), Shard(1, 2)):
            (tmp_path / shard.named("a.json")).touch()
        for name in ("a.json", "a-0-of-2.json", "a-3-of-2.json", "a-01-of-2.json", "b-1-of-2.json"):
            (tmp_path / name).touch()
        found = files_of(tmp_path, "a.json")
        assert list(found) == [Shard(1, 2), Shard(2, 11), Shard(10, 11)]
        assert found[Shard(10, 11)] == tmp_path / "a-10-of-11.json"
        assert files_of(tmp_path / "none", "a.json") == {}


class TestCheckComplete:
    FOLDER = pathlib.Path("out")

    def test_all_of_one_count_are_complete(self):
        check_complete(self.FOLDER, "a.json", [Shard(1, 2), Shard(2, 2)])

    def test_missing_and_unfinished_ones_are_listed_together(self):
        there = [Shard(1, 4), Shard(3, 4), Shard(4, 4)]
        words = r"of 4 share\(s\), 2/4 is missing; 1/4, 4/4 are not finished.*`shard` \(1/4\)"
        with pytest.raises(UserError, match=words):
            check_complete(self.FOLDER, "a.json", there, [Shard(4, 4), Shard(1, 4)])
