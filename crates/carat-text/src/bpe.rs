//! Merging one stretch of text into pieces.
//!
//! Starts from single characters and, as long as there is one, merges the pair of neighbours with the lowest rank,
//! the leftmost among equals. Short stretches (words) keep their pairs in a row and look for the minimum each
//! time. Long ones use a heap over a linked list, so that a megabyte of one letter stays `n log n`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::merges::{Merge, Merges, NO_PIECE};
use crate::vocabulary::{VISIBLE_BLANK, Vocabulary};

/// Up to this many characters the plain search is faster than the heap.
const ROW_LIMIT: usize = 48;

/// A stretch of text that is one piece, or one character outside the vocabulary.
#[derive(Clone, Copy, Debug)]
struct Symbol {
    start: usize,
    end: usize,
    id: u32,
    /// Merge with the next symbol.
    merge: Option<Merge>,
    /// Neighbours, by index; used by the heap only.
    before: usize,
    after: usize,
}

/// No neighbour.
const NONE: usize = usize::MAX;

/// Merges stretches; keeps its memory between them.
#[derive(Debug)]
pub(crate) struct Merger<'a> {
    vocabulary: &'a Vocabulary,
    merges: &'a Merges,
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Reverse<(u32, usize)>>,
}

impl<'a> Merger<'a> {
    /// A merger without memory of its own yet.
    pub(crate) fn new(vocabulary: &'a Vocabulary, merges: &'a Merges) -> Self {
        Self {
            vocabulary,
            merges,
            symbols: Vec::new(),
            heap: BinaryHeap::new(),
        }
    }

    /// Appends the ids of `text` to `ids`.
    pub(crate) fn merge_into(&mut self, text: &str, ids: &mut Vec<u32>) {
        self.split(text);
        if self.symbols.len() <= ROW_LIMIT {
            self.merge_row(text.as_bytes());
            for i in 0..self.symbols.len() {
                self.emit(self.symbols[i], text, ids);
            }
        } else {
            self.merge_heap(text.as_bytes());
            let mut at = 0;
            while let Some(&symbol) = self.symbols.get(at) {
                self.emit(symbol, text, ids);
                at = symbol.after;
            }
        }
    }

    /// One symbol per character, with the merges of all neighbours.
    fn split(&mut self, text: &str) {
        self.symbols.clear();
        let bytes = text.as_bytes();
        for (i, (start, c)) in text.char_indices().enumerate() {
            let end = start + c.len_utf8();
            let id = self
                .vocabulary
                .find_mergeable(&bytes[start..end])
                .unwrap_or(NO_PIECE);
            self.symbols.push(Symbol {
                start,
                end,
                id,
                merge: None,
                before: i.checked_sub(1).unwrap_or(NONE),
                after: i + 1,
            });
        }
        if let Some(last) = self.symbols.last_mut() {
            last.after = NONE;
        }
        for i in 1..self.symbols.len() {
            self.symbols[i - 1].merge = self.find(bytes, self.symbols[i - 1], self.symbols[i]);
        }
    }

    fn find(&self, text: &[u8], left: Symbol, right: Symbol) -> Option<Merge> {
        self.merges
            .find(self.vocabulary, left.id, right.id, &text[left.start..right.end])
    }

    fn merge_row(&mut self, text: &[u8]) {
        loop {
            let candidates = self.symbols.iter().enumerate();
            let ranked =
                candidates.filter_map(|(i, symbol)| symbol.merge.map(|merge| (merge.rank, i, merge.id)));
            let Some((_, i, id)) = ranked.min() else { return };
            let right = self.symbols.remove(i + 1);
            self.symbols[i].id = id;
            self.symbols[i].end = right.end;
            let next = self.symbols.get(i + 1).copied();
            self.symbols[i].merge = next.and_then(|next| self.find(text, self.symbols[i], next));
            if i > 0 {
                self.symbols[i - 1].merge = self.find(text, self.symbols[i - 1], self.symbols[i]);
            }
        }
    }

    fn merge_heap(&mut self, text: &[u8]) {
        let ranked = self.symbols.iter().enumerate();
        let entries: Vec<_> = ranked
            .filter_map(|(i, symbol)| symbol.merge.map(|merge| Reverse((merge.rank, i))))
            .collect();
        self.heap = BinaryHeap::from(entries);
        while let Some(Reverse((rank, i))) = self.heap.pop() {
            // Entries are not taken out when their pair changes: those that no longer fit are passed over.
            let Some(merge) = self.symbols[i].merge.filter(|merge| merge.rank == rank) else {
                continue;
            };
            let right_at = self.symbols[i].after;
            let right = self.symbols[right_at];
            self.symbols[right_at].merge = None;
            self.symbols[i].id = merge.id;
            self.symbols[i].end = right.end;
            self.symbols[i].after = right.after;
            if right.after != NONE {
                self.symbols[right.after].before = i;
            }
            self.refresh(text, i);
            let before = self.symbols[i].before;
            if before != NONE {
                self.refresh(text, before);
            }
        }
    }

    /// Recomputes the merge of symbol `i` with its right neighbour.
    fn refresh(&mut self, text: &[u8], i: usize) {
        let symbol = self.symbols[i];
        let merge = match symbol.after {
            NONE => None,
            after => self.find(text, symbol, self.symbols[after]),
        };
        self.symbols[i].merge = merge;
        if let Some(merge) = merge {
            self.heap.push(Reverse((merge.rank, i)));
        }
    }

    /// A symbol outside the vocabulary becomes its bytes; those of a blank are the visible one's, as in the reference.
    fn emit(&self, symbol: Symbol, text: &str, ids: &mut Vec<u32>) {
        if symbol.id == NO_PIECE {
            let shown = match &text[symbol.start..symbol.end] {
                " " => VISIBLE_BLANK,
                other => other,
            };
            ids.extend(shown.bytes().map(|byte| self.vocabulary.byte_id(byte)));
        } else {
            ids.push(symbol.id);
        }
    }
}
