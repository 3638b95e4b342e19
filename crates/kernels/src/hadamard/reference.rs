//! The Walsh-Hadamard transform in plain loops.

macro_rules! plain {
    ($float:ident, $name:ident) => {
        /// Row after row; `n` is a power of two that divides the length.
        #[inline(always)]
        pub fn $name(x: &mut [$float], n: usize, scale: $float) {
            for row in x.chunks_exact_mut(n) {
                let mut width = 1;
                while width < n {
                    for pair in row.chunks_exact_mut(2 * width) {
                        let (low, high) = pair.split_at_mut(width);
                        for (a, b) in low.iter_mut().zip(high) {
                            (*a, *b) = (*a + *b, *a - *b);
                        }
                    }
                    width *= 2;
                }
                for x in row {
                    *x *= scale;
                }
            }
        }
    };
}

plain!(f32, transform_f32);
plain!(f64, transform_f64);
