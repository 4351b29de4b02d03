"""The counting of issue slots, on made-up machine code."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import kernel_slots

SCREENED = """
\t.section\t.text._Z19knn_screened_kernelv,"ax",@progbits
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDS.128 R12, [R100] ;
        /*0020*/                   IMAD.MOV.U32 R4, RZ, RZ, R8 ;
        /*0030*/                   HMMA.16816.F32 R16, R20, R72.reuse, R12 ;
        /*0040*/                   HMMA.16816.F32 R12, R28, R72, R12 ;
        /*0050*/                   FMNMX R88, R18, R19, PT ;
        /*0060*/                   ISETP.GE.AND P0, PT, R2, R3, PT ;
        /*0070*/              @!P0 BRA `(.L_x_1) ;
        /*0080*/                   EXIT ;
"""
EXACT = """
\t\tFunction : _Z16knn_large_kernelv
        /*0000*/                   MOV R1, c[0x0][0x28] ;              /* 0x0000 */
        /*0010*/                   LDS R5, [R4] ;                      /* 0x0001 */
        /*0020*/                   FADD R2, R5, -R6 ;                  /* 0x0002 */
        /*0030*/                   FFMA R3, R2, R2, R3 ;               /* 0x0003 */
        /*0040*/               @P0 BRA 0x10 ;                          /* 0x0004 */
        /*0050*/                   FFMA R3, R2, R2, R3 ;               /* 0x0005 */
        /*0060*/               @P1 BRA 0x0 ;                           /* 0x0006 */
"""


def test_a_products_stretch_is_counted_by_kind() -> None:
    (function,) = kernel_slots.functions_in(SCREENED).values()
    (told,) = kernel_slots.screened_figures(function)
    assert told == {"slots": 7, "HMMA": 2, "load": 1, "move": 1, "minimum": 1, "other": 2, "per 16 HMMA": 48.0}


def test_the_innermost_loop_is_counted_in_the_other_tools_words() -> None:
    ((name, function),) = kernel_slots.functions_in(EXACT).items()
    (told,) = kernel_slots.exact_figures(function)
    assert name == "knn_large_kernel"
    assert told == {"slots": 4, "FADD": 1, "FFMA": 1, "load": 1, "move": 0, "share of FADD and FFMA": 0.5}
