"""Collectives read from optimised programs: by hand, in every way XLA writes them."""

import pytest

from gptjax.planning.collectives import read_collectives

MESH = {"data": 1, "fsdp": 4, "tensor": 2}

# A loop of 3 turns around a loop of 5, a GPU's asynchronous pairs, and a wrapped reduce-scatter.
PROGRAM = """HloModule step, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inner_body (p: (s32[], f32[16])) -> (s32[], f32[16]) {
  %p = (s32[], f32[16]{0}) parameter(0)
  %x = f32[4]{0} get-tuple-element(%p), index=1
  %gathered = bf16[16,2]{1,0} all-gather(%x), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  ROOT %t = (s32[], f32[16]{0}) tuple(%p, %gathered)
}

%inner_condition (p: (s32[], f32[16])) -> pred[] {
  %p = (s32[], f32[16]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %limit = s32[] constant(5)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%wrapped (x: f32[16]) -> f32[8] {
  %x = f32[16]{0} parameter(0)
  ROOT %scattered = f32[8]{0} reduce-scatter(%x), replica_groups={{0,1},{2,3},{4,5},{6,7}}, dimensions={0}, \
to_apply=%add
}

%outer_body (p: (s32[], f32[16])) -> (s32[], f32[16]) {
  %p = (s32[], f32[16]{0}) parameter(0)
  %inner = (s32[], f32[16]{0}) while(%p), condition=%inner_condition, body=%inner_body
  %start = ((f32[16]{0}), f32[8]{0}) async-start(%p), calls=%wrapped
  %done = f32[8]{0} async-done(%start), calls=%wrapped
  ROOT %t = (s32[], f32[16]{0}) tuple(%inner, %done)
}

%outer_condition (p: (s32[], f32[16])) -> pred[] {
  %p = (s32[], f32[16]{0}) parameter(0)
  ROOT %less = pred[] custom-call(%p), custom_call_target="unknown"
}

%all-reduce-scatter.1 (x: f32[12]) -> f32[6] {
  %x = f32[12]{0} parameter(0)
  %summed = f32[12]{0} all-reduce(%x), replica_groups=[4,2]<=[8], to_apply=%add
  %place = u32[] partition-id()
  ROOT %cut = f32[6]{0} dynamic-slice(%summed, %place), dynamic_slice_sizes={6}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %scattered = f32[6]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %loop = (s32[], f32[16]{0}) while(%x), condition=%outer_condition, body=%outer_body, \
backend_config={"known_trip_count":{"n":"3"}}
  %sums = (f32[10]{0}, f32[6]{0}) all-reduce(%x, %x), replica_groups=[1,8]<=[8], to_apply=%add
  %pair = (f32[4]{0}, f32[32]{0}) all-gather-start(%x), replica_groups={}, dimensions={0}
  %whole = f32[32]{0} all-gather-done(%pair)
  %sent = (f32[7]{0}, f32[7]{0}, u32[], u32[]) collective-permute-start(%x), \
source_target_pairs={{0,2},{2,4},{4,6},{6,0}}
  %named = f32[3]{0} all-reduce(%x), replica_groups=mesh['a'=4,'b'=2] {'b'}, to_apply=%add
  %turned = f32[5]{0} all-to-all(%x), replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}
  %part = f32[9]{0} all-reduce(%x), replica_groups=mesh['a'=8] {'a':(2)2}, to_apply=%add
  %begun = ((f32[32]{0}), (f32[8]{0})) reduce-scatter-start(%x), replica_groups=[2,4]<=[4,2]T(1,0)
  ROOT %got = f32[8]{0} collective-permute-done(%sent)
}
"""


def test_kinds_axes_bytes_and_turns_by_hand():
    found, unknown = read_collectives(PROGRAM, MESH)
    assert unknown == 0
    assert {(c.kind, c.axes): (c.devices, c.places, c.calls, c.bytes) for c in found} == {
        ("all-gather", ("fsdp",)): (4, 1, 3 * 5, 15 * 16 * 2 * 2),
        ("reduce-scatter", ("tensor",)): (2, 2, 3 + 1, 3 * 8 * 4 * 2 + 12 * 4),
        ("all-reduce", ("fsdp", "tensor")): (8, 1, 1, (10 + 6) * 4),
        ("all-gather", ("fsdp", "tensor")): (8, 1, 1, 32 * 4),
        ("collective-permute", ("fsdp",)): (2, 1, 1, 7 * 4),
        ("all-reduce", ("tensor",)): (2, 1, 1, 3 * 4),
        ("all-to-all", ("fsdp",)): (4, 1, 1, 5 * 4),
        ("all-reduce", ("fsdp",)): (2, 1, 1, 9 * 4),
        ("reduce-scatter", ("fsdp",)): (4, 1, 1, 32 * 4),
    }
    assert [c.bytes for c in found] == sorted((c.bytes for c in found), reverse=True)


def test_a_loop_of_unknown_length_counts_once_and_is_told():
    text = PROGRAM.replace('backend_config={"known_trip_count":{"n":"3"}}', "backend_config={}")
    found, unknown = read_collectives(text, MESH)
    assert unknown == 1  # the outer body's reduce-scatter is called from it; the inner loop is still known
    assert next(c.calls for c in found if c.kind == "all-gather" and c.axes == ("fsdp",)) == 5


@pytest.mark.parametrize(("kind", "sent"), [("all-gather", 75), ("all-reduce", 150), ("reduce-scatter", 75)])
def test_what_a_ring_passes_on(kind, sent):
    from gptjax.planning.collectives import Collective

    assert Collective(kind, ("fsdp",), 4, 1, 1, 100.0).sent == sent
