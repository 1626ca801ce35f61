//! AMX for tests on processors without it: the instructions of [`super::amx`] raise SIGILL there, and the handler does
//! what Intel's manual says that they do. So the very bytes that run on a processor with AMX are tested on every Linux
//! machine with AVX-512 (VNNI, BF16); that a real one does the same is then known of the instructions only, not of their speed.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;

const TILES: usize = 8;
const ROWS: usize = 16;
const ROW: usize = 64;

/// One thread's tiles.
struct State {
    rows: [usize; TILES],
    row_bytes: [usize; TILES],
    tiles: [[[u8; ROW]; ROWS]; TILES],
}

thread_local! {
    static STATE: UnsafeCell<State> = const {
        UnsafeCell::new(State {
            rows: [0; TILES],
            row_bytes: [0; TILES],
            tiles: [[[0; ROW]; ROWS]; TILES],
        })
    };
}

/// Handles SIGILL from now on, where AVX-512, which the kernels use beside AMX, is there.
pub(super) fn install() -> bool {
    // SAFETY: `on_illegal` has the type that SA_SIGINFO asks for; an all-zero action is one.
    std::arch::is_x86_feature_detected!("avx512vnni")
        && unsafe {
            let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
            action.sa_sigaction = on_illegal as extern "C" fn(_, _, _) as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
            libc::sigaction(libc::SIGILL, &raw const action, std::ptr::null_mut()) == 0
        }
}

extern "C" fn on_illegal(signal: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the system hands over a context; the thread was stopped in assembly, so nobody else holds its state.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        if STATE
            .with(|state| execute(registers, &mut *state.get()))
            .is_none()
        {
            // Another instruction: it ends the process as it would have without us.
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}

/// The general registers in the order that instructions number them.
const NUMBERED: [libc::c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// Carries out the instruction at the instruction pointer, if it is one of AMX, and goes past it.
///
/// # Safety
/// The registers are those of a thread that stopped at an instruction whose operands are valid.
unsafe fn execute(registers: &mut [libc::greg_t], state: &mut State) -> Option<()> {
    let at = registers[libc::REG_RIP as usize] as *const u8;
    // SAFETY: an instruction of this form has at least five bytes, and what is read later depends on them.
    let byte = |i: usize| unsafe { *at.add(i) };
    // A three-byte VEX prefix of the map 0F38, 128 bits, W0.
    if byte(0) != 0xc4 || byte(1) & 0x1f != 2 || byte(2) & 0x84 != 0 {
        return None;
    }
    let (index_8, base_8) = (
        usize::from(!byte(1) >> 6 & 1) * 8,
        usize::from(!byte(1) >> 5 & 1) * 8,
    );
    let (third, prefix, opcode) = (usize::from(!byte(2) >> 3 & 15), byte(2) & 3, byte(3));
    let (mode, reg, rm) = (
        byte(4) >> 6,
        usize::from(byte(4) >> 3 & 7),
        usize::from(byte(4) & 7),
    );
    let mut length = 5;
    let mut address = 0i64;
    let mut stride = 0i64;
    if mode != 3 {
        let value = |number: usize| registers[NUMBERED[number] as usize];
        let (base, has_index) = if rm == 4 {
            length += 1;
            let (scale, index) = (byte(5) >> 6, usize::from(byte(5) >> 3 & 7) + index_8);
            if index != 4 {
                stride = value(index) << scale;
            }
            (usize::from(byte(5) & 7), true)
        } else {
            (rm, false)
        };
        if mode == 0 && base == 5 || opcode == 0x4b && !has_index {
            return None;
        }
        address = value(base + base_8);
        address += match mode {
            1 => i64::from(byte(length) as i8),
            2 => i64::from(i32::from_le_bytes([
                byte(length),
                byte(length + 1),
                byte(length + 2),
                byte(length + 3),
            ])),
            _ => 0,
        };
        length += [0, 1, 4][usize::from(mode)];
    }
    match (opcode, prefix, mode == 3) {
        // ldtilecfg
        (0x49, 0, false) => {
            // SAFETY: 64 bytes at the operand.
            let config = unsafe { std::slice::from_raw_parts(address as *const u8, 64) };
            assert!(
                config[0] == 1 && config[1] == 0,
                "palette 1, from the first row on"
            );
            for t in 0..TILES {
                state.row_bytes[t] =
                    usize::from(u16::from_le_bytes([config[16 + 2 * t], config[17 + 2 * t]]));
                state.rows[t] = usize::from(config[48 + t]);
                assert!(
                    state.rows[t] <= ROWS && state.row_bytes[t] <= ROW,
                    "a tile is too large"
                );
            }
            state.tiles = [[[0; ROW]; ROWS]; TILES];
        }
        // tilerelease
        (0x49, 0, true) => state.rows = [0; TILES],
        // tilezero
        (0x49, 3, true) => state.tiles[reg] = [[0; ROW]; ROWS],
        // tileloadd, tilestored
        (0x4b, 3 | 2, false) => {
            assert!(state.rows[reg] > 0, "a tile that is not configured");
            for r in 0..state.rows[reg] {
                let row = (address + r as i64 * stride) as *mut u8;
                let tile = &mut state.tiles[reg][r];
                let n = state.row_bytes[reg];
                // SAFETY: a row of the operand.
                unsafe {
                    if prefix == 3 {
                        tile.fill(0);
                        std::ptr::copy_nonoverlapping(row, tile.as_mut_ptr(), n);
                    } else {
                        std::ptr::copy_nonoverlapping(tile.as_ptr(), row, n);
                    }
                }
            }
        }
        // tdpbf16ps
        (0x5c, 2, true) => state.dot_bf16(reg, rm, third),
        _ => return None,
    }
    registers[libc::REG_RIP as usize] += length as i64;
    Some(())
}

impl State {
    /// `c += a b`. Subnormal numbers count as zero, sums of even and of odd elements are kept apart until the end.
    fn dot_bf16(&mut self, c: usize, a: usize, b: usize) {
        assert!(
            c != a
                && a != b
                && b != c
                && self.row_bytes[a] / 4 == self.rows[b]
                && self.rows[c] == self.rows[a],
            "tiles do not fit each other"
        );
        let flush = |x: f32| if x.is_subnormal() { 0.0f32.copysign(x) } else { x };
        let element = |row: &[u8; ROW], i: usize| {
            flush(f32::from_bits(
                u32::from(u16::from_le_bytes([row[2 * i], row[2 * i + 1]])) << 16,
            ))
        };
        for m in 0..self.rows[c] {
            for n in 0..self.row_bytes[c] / 4 {
                let mut sums = [0.0f32; 2];
                for k in 0..self.rows[b] {
                    for (i, sum) in sums.iter_mut().enumerate() {
                        let (x, y) = (
                            element(&self.tiles[a][m], 2 * k + i),
                            element(&self.tiles[b][k], 2 * n + i),
                        );
                        *sum = flush(x.mul_add(y, *sum));
                    }
                }
                let place = &mut self.tiles[c][m][4 * n..4 * n + 4];
                let old = f32::from_le_bytes([place[0], place[1], place[2], place[3]]);
                place.copy_from_slice(&flush(flush(old) + flush(sums[0] + sums[1])).to_le_bytes());
            }
        }
    }
}
