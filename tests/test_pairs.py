import shutil
import numpy as np, pandas as pd, pytest
from conftest import BIG_PLANES, LATE_WELL, MOVED, SAMPLE, moved_by
from hypothesis import given, strategies as st
from refocus_nbdev.plates.registration import focus_by_well, focus_report, registered, registration_report
from refocus_nbdev.io.planes import ImageError
from refocus_nbdev.io.images import MicroscopeImage, read_image, write_image
from refocus_nbdev.plates.names import defocus_of, named_wells, parse_name, plane_files
from refocus_nbdev.plates.splits import groups_of, split_wells, spread_wells
from refocus_nbdev.plates.pairs import bbbc006_pairs

WHOLE = [f'{r}{c:02d}' for r in 'abcdefghijklmnop' for c in range(1, 25)]
FAR = [z for z in BIG_PLANES if z not in range(14, 22)]

def folder_of(z): return f'BBBC006_v1_images_z_{z:02d}'

@pytest.fixture
def part(big_plate, tmp_path):
    "A copy of some planes of the big plate, free to be spoilt"
    def copy(*planes):
        for z in planes: shutil.copytree(big_plate/folder_of(z), tmp_path/folder_of(z))
        return tmp_path
    return copy

def second_channel(root, planes, up=0):
    "Names of the second channel for copies of the first one's images, `up` planes higher"
    for z in planes:
        (root/folder_of(z+up)).mkdir(exist_ok=True)
        for p in plane_files(root, z).values(): shutil.copy(p, root/folder_of(z+up)/p.name.replace('_w1', '_w2'))
    return root

@pytest.fixture(scope='module')
def focus(big_plate): return focus_report(big_plate)

@pytest.fixture(scope='module')
def pairs(big_plate): return bbbc006_pairs(big_plate, [z for z in BIG_PLANES if z!=16])

@pytest.fixture(scope='module')
def shifts(pairs): return registration_report(pairs)

@pytest.mark.parametrize('z', range(34))
def test_a_plane_is_two_micrometres(z): assert defocus_of(z)==2*(z-16)

def test_a_pair_knows_its_distance(pairs): assert all(p.defocus_um==2*(p.field.z-16) and p.focus_z==16 for p in pairs)

def test_the_focus_report_finds_the_late_well_only(focus):
    assert focus[focus.off].well.tolist()==[LATE_WELL]
    assert focus.set_index('well').moved[LATE_WELL]==3
    assert (focus.planes==13).all() and focus.gain[focus.off].item()>1.05

def test_the_focus_report_by_well(focus):
    wells = focus_by_well(focus)
    assert wells.index[wells.off].tolist()==[LATE_WELL] and wells.fields.sum()==len(focus)

def test_the_registration_report_finds_the_moved_pair_only(pairs, shifts):
    found = [p.field for p,bad in zip(pairs, shifts.flagged) if bad]
    assert [(f.well, f.site, f.z) for f in found]==[MOVED]
    assert shifts[shifts.flagged][['dy','dx']].values[0]==pytest.approx([4, 0], abs=0.3)

def test_what_lies_well_measures_next_to_nothing(shifts):
    rest = shifts[~shifts.flagged]
    assert rest['shift'].max()<0.7 and rest['shift'].median()<0.05 and rest['shift'].isna().mean()<0.05

def test_flagged_pairs_can_be_left_out(pairs, shifts):
    kept = registered(pairs, shifts)
    assert len(kept)==len(pairs)-1 and MOVED not in [(p.field.well, p.field.site, p.field.z) for p in kept]
    with pytest.raises(ValueError, match='not these'): registered(kept, shifts)

def test_own_targets_do_not_disturb_registration(big_plate):
    found = registration_report(bbbc006_pairs(big_plate, FAR, target='sharpest'))
    assert found[found.flagged][['well','site','z']].values.tolist()==[list(MOVED)]

@pytest.mark.parametrize('dy,dx', [(2,0), (0,-2), (-4,5)])
@pytest.mark.parametrize('z,most_missed', [(1,2), (10,0), (13,0), (32,2)])
def test_shifts_are_measured_at_every_distance(part, z, most_missed, dy, dx):
    "30 um out of focus, some are missed"
    root = part(z, 16)
    for p in plane_files(root, z).values(): moved_by(p, dy, dx)
    found = registration_report(bbbc006_pairs(root, [z])).query('well!="c12"')
    assert (~found.flagged).sum()<=most_missed
    assert np.abs(found[found.flagged][['dy','dx']].values-[dy,dx]).max()<(0.5 if not most_missed else 1)

def test_images_of_two_fields_are_flagged(part):
    a,b = [p for k,p in sorted(plane_files(part(10, 16), 10).items()) if k[0] in ('a05','m22')]
    for p,im in zip((b,a), [read_image(p) for p in (a,b)]): write_image(p, im)
    found = registration_report(bbbc006_pairs(a.parents[1], [10]))
    assert found[found.flagged].well.tolist()==['a05','m22']

def test_an_empty_field_says_nothing(part):
    root,rng = part(10, 15, 16),np.random.default_rng(0)
    for z in (10, 15, 16): write_image(plane_files(root, z)['a05',1], MicroscopeImage(rng.normal(105, 4, (160,160)).astype(np.uint16)))
    shift = registration_report(bbbc006_pairs(root, [10])).set_index('well').loc['a05']
    report = focus_report(root)
    focus,by_well = report.set_index('well').loc['a05'],focus_by_well(report).loc['a05']
    assert np.isnan(shift['shift']) and not shift.flagged and pd.isna(focus.moved) and not focus.off and not by_well.off and by_well.differ==0

def test_images_of_unequal_size(part):
    root = part(10, 16)
    p = plane_files(root, 10)['a05',1]
    write_image(p, MicroscopeImage(np.zeros((160,100), np.uint16)))
    with pytest.raises(ImageError, match=f'{p.name}.*same size'): registration_report(bbbc006_pairs(root, [10]))

def test_the_sharpest_plane_is_the_fields_own(big_plate):
    pairs = bbbc006_pairs(big_plate, (1, 10, 32), target='sharpest')
    assert {p.field.well: p.focus_z for p in pairs}=={w: 19 if w==LATE_WELL else 16 for w in ('a05','c12','g03','m22','p14',LATE_WELL)}
    assert all(parse_name(p.sharp).z==p.focus_z and p.defocus_um==2*(p.field.z-p.focus_z) for p in pairs)

def test_what_is_its_own_target_is_no_pair(big_plate):
    pairs = bbbc006_pairs(big_plate, (16, 19), target='sharpest')
    assert len(pairs)==6 and {(p.field.z, p.focus_z) for p in pairs}=={(19,16), (16,19)}
    assert bbbc006_pairs(big_plate, (10, 16))==bbbc006_pairs(big_plate, (10,))

def test_part_of_the_band_is_enough(part):
    pairs = bbbc006_pairs(part(1, 13, 15, 18), (1,), target='sharpest')
    assert {p.field.well: p.focus_z for p in pairs}[LATE_WELL]==18 and {p.focus_z for p in pairs}=={15, 18}

def test_none_of_the_band_is_not(part):
    with pytest.raises(ImageError, match='11 to 23'): bbbc006_pairs(part(1, 5), (1,), target='sharpest')

def test_a_damaged_image_is_named(part):
    p = plane_files(part(1, 15, 16), 15)['a05',1]
    p.write_bytes(p.read_bytes()[:100])
    with pytest.raises(ImageError, match=p.name): bbbc006_pairs(p.parents[1], (1,), target='sharpest')

def test_each_channel_has_its_own_partner_and_focus(part):
    root = second_channel(second_channel(part(1, 13, 15, 16), (13, 15, 16), up=1), (1,))
    pairs = bbbc006_pairs(root, (1,), target='sharpest', channel='both')
    assert all(parse_name(p.sharp)[:3]==p.field[:3] for p in pairs)
    assert [p.field.channel for p in pairs]==[1]*6+[2]*6
    assert {(p.field.channel, p.focus_z) for p in pairs if p.field.well!=LATE_WELL}=={(1,16), (2,17)}
    assert set(focus_report(root, 'both').channel)=={1, 2}

def test_one_channel_only(part):
    root = second_channel(part(1, 16), (1, 16))
    assert {p.field.channel for p in bbbc006_pairs(root, (1,), channel=2)}=={2}
    with pytest.raises(ValueError, match='phalloidin'): bbbc006_pairs(root, (1,), channel=0)

def test_a_missing_channel(big_plate):
    with pytest.raises(ImageError, match='w2'): bbbc006_pairs(big_plate, (1,), channel='both')

def shares(wells, of): return np.unique([of(w) for w in wells], return_counts=True)[1]

@pytest.mark.parametrize('seed', range(5))
def test_held_out_wells_are_spread_over_the_plate(seed):
    for wells in split_wells(WHOLE, 0.2, 0.1, seed=seed)[1:]:
        for of,n in ((lambda w: w[0], 16), (lambda w: w[1:], 24)):
            rows = shares(wells, of)
            assert len(rows)==n and np.ptp(rows)<=1

def test_the_seed_decides():
    assert split_wells(WHOLE, test_pct=0.2)==split_wells(WHOLE[::-1]*2, test_pct=0.2)
    assert split_wells(WHOLE)!=split_wells(WHOLE, seed=1)

@given(st.sets(st.sampled_from(WHOLE), min_size=3), st.floats(0.01, 0.99), st.floats(0, 0.5), st.integers(0, 99))
def test_no_well_is_in_two_sets(wells, valid_pct, test_pct, seed):
    split = split_wells(wells, valid_pct, test_pct, seed=seed)
    assert set.union(*split)==wells and sum(map(len, split))==len(wells)
    assert split.train and split.valid and bool(split.test)==bool(test_pct)

def test_both_sites_of_a_well_stay_together():
    pairs = bbbc006_pairs(SAMPLE)
    split = split_wells([p.field.well for p in pairs], 0.25, 0.25)
    assert [sum(p.field.well in part for p in pairs) for part in split]==[27, 9, 12]

def test_wells_given_by_name():
    split = split_wells(WHOLE, valid_wells=['a01','b02'], test_wells=['p24'])
    assert split[1:]==({'a01','b02'}, {'p24'}) and len(split.train)==381
    assert 'p24' not in split_wells(WHOLE, test_wells=['p24']).valid
    assert 'a01' not in split_wells(WHOLE, test_pct=0.9, valid_wells=['a01']).test

@pytest.mark.parametrize('wrong,about', [
    (dict(test_wells=['a01','z99']), 'test_wells: z99'), (dict(valid_wells=['A01']), 'valid_wells: A01'),
    (dict(valid_wells=['a01','a02'], test_wells=['a02']), 'a02: both'), (dict(valid_wells=WHOLE), 'leave 0'),
    (dict(test_wells=WHOLE), 'leave 0'), (dict(valid_pct=20), 'valid_pct=20'), (dict(test_pct=-1), 'test_pct=-1')])
def test_what_cannot_be_split_gets_a_sentence(wrong, about):
    with pytest.raises(ValueError, match=about): split_wells(WHOLE, **wrong)

def test_a_name_that_is_no_well():
    with pytest.raises(ValueError, match='tiles0.*a01 to p24'): spread_wells(['a01','tiles0'], 1)

def test_the_command_reports_both(refocus, big_plate, tmp_path):
    said = refocus('check', big_plate, '--planes', '5,10', '--out', tmp_path/'report')
    focus,shifts = (pd.read_csv(tmp_path/'report'/f'{n}.csv') for n in ('focus','registration'))
    assert said.code==0 and 'in 1 by more than one plane' in said.text and '1 of 12 pairs is shifted' in said.text
    assert focus[focus.off].well.tolist()==[LATE_WELL] and shifts[shifts.flagged].z.tolist()==[MOVED[2]]

@pytest.mark.parametrize('args,code', [(['--planes','x'], 2), (['--target','best'], 2), (['--planes','7'], 2)])
def test_the_command_refuses_in_a_sentence(in_process, big_plate, args, code):
    said = in_process('check', big_plate, *args)
    assert said.code==code and said.text.startswith('refocus check: ')

def test_a_channel_that_there_is_not(in_process, big_plate):
    said = in_process('check', big_plate, '--channel', 'w3')
    assert said.code==2 and 'Traceback' not in said.text and all(f"'{c}'" in said.text for c in ('--channel', 'w3', 'w1', 'w2', 'both'))

def test_the_command_needs_a_plate(in_process, tmp_path): assert in_process('check', tmp_path/'gone').code==2

@pytest.mark.parametrize('names,wells', [
    ('A01_f1 a02-f1', 'A01 A02'), ('P24 H12.ome', 'P24 H12'), ('A1_01_DAPI B10_01_DAPI', 'A01 B10'), ('20240301_p1_A01_s1_w1 20240301_p1_F03_s1_w1', 'A01 F03'),
    ('AP_A01_T0001F001L01A01Z01C01 AP_C02_T0001F001L01A01Z01C01', 'A01 C02'), ('r02c11f01p01-ch1sk1fk1fl1 r03c11f01', 'B11 C11'), ('MFGTMP_12_A01f00d0 MFGTMP_12_A02f00d0', 'A01 A02'),
    ('B16_A01 B16_D02', 'A01 D02'), ('A01_F01_C01 A02_F02_C01', 'A01 A02'),
    ('x_AA01_s1_w1 x_AF48_s1_w1 x_B30_s1_w1', 'AA01 AF48 B30'), ('AA01_f1 Z02_f1', 'AA01 Z02')])
def test_names_that_tell_wells(names, wells): assert named_wells(f'{n}.tif' for n in names.split())==wells.split()

@pytest.mark.parametrize('name', ['c1', 'x_c1', 'C1-x', 'x_t1', 'x_z5', 'x_s2_w1', 'x_C01', 'x_F01', 'x-a1', 'A25', 'A00', 'r33c01f01', 'A549_1', 'field01', 'deadb01f', '0f5c-a021', 'T01', 'Z05_S02', 'h2b', 'xA01', 'x_T01_s1', 'Z05_s02', 'AD01_x'])
def test_names_that_tell_none(name): assert named_wells([f'in/{name}.tif'])==[None]

def test_a_folder_may_be_a_well(): assert named_wells(['A01/1.tif', 'B02/1.tif', 'x_A01/1.tif', 'A/1.tif'])==['A01', 'B02', None, None]

def test_wells_of_bbbc006_are_their_own(part):
    plate = part(16)
    ours = sorted(plane_files(plate, 16).values())
    other = [shutil.copy(f, plate/f'{n}_s1_c1.tif') for f,n in zip(ours, ('test_A05','test_C12'))]
    assert groups_of([*ours, *other])==[parse_name(f).well for f in ours]+['A05','C12']
