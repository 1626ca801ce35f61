//! Pages: the unit in which keys and values are allocated, shared and copied.
//!
//! A page holds the keys and values of [`PAGE`] positions of all heads of one layer:
//!
//! ```text
//! keys of head 0 | keys of head 1 | ... | values of head 0 | values of head 1 | ...
//! each: numbers [PAGE, row] | scales [PAGE, row / 32]     (see KvDType for a row)
//! ```
//!
//! so that one head's keys are one run of tens of KiB (32 for f16 and 256 elements), long enough for the
//! processor to read ahead, and begin on a cache line. 64 positions are also the tile of keys of
//! [`super::prefill`].

use std::ops::Range;
use std::sync::Arc;

use super::kv_dtype::{KvDType, row_len};
use crate::aligned::Line;

/// Positions of a page.
pub const PAGE: usize = 64;

/// What the pages of a layer hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Format of the numbers.
    pub dtype: KvDType,
    /// Heads of keys and values.
    pub n_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

impl KvShape {
    /// Bytes of a page: the keys and values of [`PAGE`] positions. `None` when the size overflows.
    #[must_use]
    pub fn page_bytes(&self) -> Option<usize> {
        // Within bounds of its own: eight bytes an element are more than any format takes.
        self.head_dim.checked_add(64)?.checked_mul(8)?;
        self.n_kv_heads
            .checked_mul(2 * PAGE)?
            .checked_mul(self.row_bytes())
    }

    /// Bytes of one key or value of one head.
    pub(super) fn row_bytes(&self) -> usize {
        self.dtype.bytes_for_row(self.head_dim)
    }

    /// Bytes of `n` keys or values, of one or more heads, as [`super::pack_rows`] makes them.
    #[must_use]
    pub fn packed_len(&self, n: usize) -> usize {
        n / self.head_dim * self.row_bytes()
    }

    /// Elements of a row with its padding.
    pub(super) fn row_len(&self) -> usize {
        row_len(self.head_dim)
    }
}

/// Keys or values.
#[derive(Clone, Copy)]
pub(super) enum Side {
    Key,
    Value,
}

/// The keys and values of [`PAGE`] positions of one layer. See the module's head for the layout.
pub struct KvPage {
    /// Whole cache lines, so that rows never straddle more of them than they must.
    lines: Vec<Line>,
}

impl KvPage {
    /// A page of zeros; `None` when there is no memory for it.
    #[must_use]
    pub fn new(shape: &KvShape) -> Option<KvPage> {
        let n = shape.page_bytes()?.div_ceil(size_of::<Line>());
        let mut lines = Vec::new();
        lines.try_reserve_exact(n).ok()?;
        lines.resize(n, Line::ZERO);
        Some(KvPage { lines })
    }

    /// A copy; `None` when there is no memory for it.
    #[must_use]
    pub fn try_clone(&self) -> Option<KvPage> {
        let mut lines = Vec::new();
        lines.try_reserve_exact(self.lines.len()).ok()?;
        lines.extend_from_slice(&self.lines);
        Some(KvPage { lines })
    }

    /// All of it, as it is written to a file.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.lines)
    }

    /// All of it, to be read from a file. Any bytes are numbers.
    #[must_use]
    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.lines)
    }

    /// Writes one position's keys and values, each `[K, row]` as [`super::pack_rows`] makes them, to slot `slot`.
    ///
    /// # Panics
    /// When the rows do not fit the shape, or the page was made for another.
    pub fn write(&mut self, shape: &KvShape, slot: usize, k: &[u8], v: &[u8]) {
        let row = shape.row_bytes();
        assert!(
            slot < PAGE && [k, v].iter().all(|rows| rows.len() == shape.n_kv_heads * row),
            "rows do not fit the cache"
        );
        let (n_values, n_scales) = (
            shape.dtype.value_bytes(shape.head_dim),
            shape.dtype.scale_bytes(shape.head_dim),
        );
        let heads = bytemuck::cast_slice_mut::<Line, u8>(&mut self.lines).chunks_exact_mut(PAGE * row);
        let rows = k.chunks_exact(row).chain(v.chunks_exact(row));
        let mut n_written = 0;
        for (head, row) in heads.zip(rows) {
            let (values, scales) = head.split_at_mut(PAGE * n_values);
            values[slot * n_values..][..n_values].copy_from_slice(&row[..n_values]);
            scales[slot * n_scales..][..n_scales].copy_from_slice(&row[n_values..]);
            n_written += 1;
        }
        assert_eq!(
            n_written,
            2 * shape.n_kv_heads,
            "a page was made for another shape"
        );
    }

    /// Rows `slots` of one head.
    fn rows(&self, shape: &KvShape, side: Side, head: usize, slots: Range<usize>) -> Rows<'_> {
        let (n_values, n_scales) = (
            shape.dtype.value_bytes(shape.head_dim),
            shape.dtype.scale_bytes(shape.head_dim),
        );
        let index = head
            + match side {
                Side::Key => 0,
                Side::Value => shape.n_kv_heads,
            };
        let size = PAGE * (n_values + n_scales);
        let bytes = &bytemuck::cast_slice::<Line, u8>(&self.lines)[index * size..(index + 1) * size];
        let (values, scales) = bytes.split_at(PAGE * n_values);
        Rows {
            values: &values[slots.start * n_values..slots.end * n_values],
            scales: &scales[slots.start * n_scales..slots.end * n_scales],
            n: slots.len(),
            shape: *shape,
            next: values.as_ptr(),
        }
    }
}

impl std::fmt::Debug for KvPage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KvPage({} bytes)", self.lines.len() * size_of::<Line>())
    }
}

/// Neighbouring rows of one head. Made here alone, so that the lengths are those of the shape.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    values: &'a [u8],
    scales: &'a [u8],
    n: usize,
    shape: KvShape,
    /// Numbers that will be read after these; only ever asked for ahead of time.
    next: *const u8,
}

/// One row of [`Rows`].
#[derive(Clone, Copy)]
pub(super) struct Row {
    /// Begin of the numbers.
    pub(super) values: *const u8,
    /// Begin of the scales.
    pub(super) scales: *const u8,
    /// A row that will be read [`AHEAD`] bytes later.
    pub(super) ahead: *const u8,
}

/// How far ahead rows are asked for, in bytes: at the 22 GB/s that one core gets, 4 KiB last for 180 ns, more than
/// memory needs to answer.
const AHEAD: usize = 4096;

impl<'a> Rows<'a> {
    /// One row as [`super::pack_rows`] makes it.
    pub(super) fn packed(shape: &KvShape, row: &'a [u8]) -> Rows<'a> {
        assert_eq!(row.len(), shape.row_bytes(), "a row does not fit its shape");
        let (values, scales) = row.split_at(shape.dtype.value_bytes(shape.head_dim));
        Rows {
            values,
            scales,
            n: 1,
            shape: *shape,
            next: values.as_ptr(),
        }
    }

    /// Says what will be read after these rows.
    pub(super) fn before(self, next: Option<Rows<'_>>) -> Rows<'a> {
        Rows {
            next: next.map_or(self.next, |next| next.values.as_ptr()),
            ..self
        }
    }

    pub(super) fn len(&self) -> usize {
        self.n
    }

    pub(super) fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Cache lines of a row's numbers.
    pub(super) fn lines(&self) -> usize {
        self.shape.dtype.value_bytes(self.shape.head_dim) / size_of::<Line>()
    }

    /// Each row; it has the whole blocks of its shape's `row_len`.
    #[inline(always)]
    pub(super) fn iter(self) -> impl Iterator<Item = Row> {
        let n_values = self.shape.dtype.value_bytes(self.shape.head_dim);
        let n_scales = self.shape.dtype.scale_bytes(self.shape.head_dim);
        assert!(
            self.values.len() == self.n * n_values && self.scales.len() == self.n * n_scales,
            "rows do not fit their shape"
        );
        let (values, scales) = (self.values.as_ptr(), self.scales.as_ptr());
        let n_ahead = AHEAD / n_values.max(1);
        // Wrapping, since what is only asked for may be no row at all.
        (0..self.n).map(move |i| Row {
            values: values.wrapping_add(i * n_values),
            scales: scales.wrapping_add(i * n_scales),
            ahead: if i + n_ahead < self.n {
                values.wrapping_add((i + n_ahead) * n_values)
            } else {
                self.next.wrapping_add((i + n_ahead - self.n) * n_values)
            },
        })
    }
}

/// One layer's cache of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct KvView<'a> {
    /// The page of position `p` is `pages[(p / PAGE) % pages.len()]`.
    pub pages: &'a [Arc<KvPage>],
    /// What the pages hold.
    pub shape: KvShape,
}

impl<'a> KvView<'a> {
    /// Positions that the pages have slots for.
    pub(super) fn n_slots(&self) -> usize {
        self.pages.len() * PAGE
    }

    /// Keys or values of one head at `positions`, which lie in one page.
    pub(super) fn rows(&self, side: Side, head: usize, positions: Range<usize>) -> Rows<'a> {
        let first = positions.start % PAGE;
        let page = &self.pages[positions.start / PAGE % self.pages.len()];
        page.rows(&self.shape, side, head, first..first + positions.len())
    }
}

/// `positions` cut where pages end.
pub(super) fn by_page(positions: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let (first, end) = (positions.start, positions.end);
    (first / PAGE..end.div_ceil(PAGE)).map(move |page| first.max(page * PAGE)..end.min((page + 1) * PAGE))
}
