//! Observers and weight searches against the golden vectors and against the reference loops.

mod cases;
mod kwargs;
mod qparams;
mod sequences;
mod slabs;
mod weights;
