/* The second stage of the RP2040's boot: makes the flash readable as memory, then starts the
 * image behind it. The bootrom copies these 256 bytes to the end of RAM and calls them if their
 * last four are the CRC-32 of the others (RP2040 datasheet, 2.8.1.3); those are filled in after
 * linking, by firmware/boot2.py. It runs wherever it is copied to.
 *
 * A flash whose four data lines work is put into continuous quad reads: an address goes out on
 * four lines and no command precedes it. Where they are not enabled, and cannot be until the
 * next power-down (Winbond's volatile write, which wears nothing and leaves block protection as
 * it is), every read is command 03h on one line at half the clock. That works on any flash.
 */
    .syntax unified
    .cpu cortex-m0plus
    .thumb

#define PADS_QSPI_CLEAR 0x40023000 /* writes clear bits there */
#define PADS_QSPI_SET 0x40022000
#define PADS_SCLK 0x04
#define PADS_SD0 0x08
#define PADS_SD1 0x0C
#define PADS_SD2 0x10
#define PADS_SD3 0x14
#define PAD_SLEW_FAST (1 << 0)
#define PAD_SCHMITT (1 << 1)
#define PAD_DRIVE_8_MA (2 << 4)
#define PAD_DRIVE_4_MA (1 << 4)

#define XIP_SSI 0x18000000
#define SSI_CTRLR0 0x00
#define SSI_CTRLR1 0x04
#define SSI_ENABLE 0x08
#define SSI_BAUDR 0x14
#define SSI_SR 0x28
#define SSI_DR0 0x60
#define SSI_RX_SAMPLE_DELAY 0xF0
#define SSI_SPI_CTRLR0 0xF4
#define SR_BUSY (1 << 0)
#define SR_TX_EMPTY (1 << 2)

#define CTRLR0_FRAME_BITS(bits) (((bits) - 1) << 16)
#define CTRLR0_QUAD (2 << 21)
#define CTRLR0_EEPROM_READ (3 << 8) /* send an address, receive data */
#define SPI_ADDRESS_BITS(bits) (((bits) / 4) << 2)
#define SPI_WAIT_CLOCKS(clocks) ((clocks) << 11)
#define SPI_COMMAND_8_BITS (2 << 8)
#define SPI_ADDRESS_QUAD 1
#define SPI_ALL_QUAD 2
#define SPI_XIP_COMMAND(byte) ((byte) << 24)

#define FLASH_READ 0x03
#define FLASH_READ_QUAD 0xEB
#define FLASH_READ_STATUS_2 0x35
#define FLASH_WRITE_STATUS_2 0x31
#define FLASH_VOLATILE_STATUS 0x50
#define STATUS_2_QUAD 2
#define MODE_CONTINUOUS 0xA0 /* the next read has no command */

#define VECTORS 0x10000100
#define SCB_VTOR 0xE000ED08

    .section .boot2, "ax", %progbits
    .balign 4
    .global ek_boot2
    .thumb_func
ek_boot2:
    /* The clock's pad: twice the current, fast edges; the data's pads: without hysteresis, which
     * would cost time. */
    ldr r3, =PADS_QSPI_SET
    movs r0, #(PAD_DRIVE_8_MA | PAD_SLEW_FAST)
    str r0, [r3, #PADS_SCLK]
    ldr r3, =PADS_QSPI_CLEAR
    movs r0, #PAD_DRIVE_4_MA
    str r0, [r3, #PADS_SCLK]
    movs r0, #PAD_SCHMITT
    str r0, [r3, #PADS_SD0]
    str r0, [r3, #PADS_SD1]
    str r0, [r3, #PADS_SD2]
    str r0, [r3, #PADS_SD3]

    /* Plain bytes, sent and received at once, at half of clk_sys. */
    ldr r3, =XIP_SSI
    movs r4, #0
    movs r5, #1
    movs r6, #STATUS_2_QUAD
    str r4, [r3, #SSI_ENABLE]
    movs r0, #2
    str r0, [r3, #SSI_BAUDR]
    movs r0, #SSI_RX_SAMPLE_DELAY
    str r5, [r3, r0]
    ldr r0, =CTRLR0_FRAME_BITS(8)
    str r0, [r3, #SSI_CTRLR0]
    str r5, [r3, #SSI_ENABLE]

    bl read_status_2
    bne quad
    movs r0, #FLASH_VOLATILE_STATUS
    str r0, [r3, #SSI_DR0]
    bl finish
    movs r0, #FLASH_WRITE_STATUS_2
    bl send
    bl read_status_2
    bne quad

    str r4, [r3, #SSI_ENABLE]
    movs r0, #4
    str r0, [r3, #SSI_BAUDR]
    ldr r0, =(CTRLR0_FRAME_BITS(32) | CTRLR0_EEPROM_READ)
    str r0, [r3, #SSI_CTRLR0]
    str r4, [r3, #SSI_CTRLR1]
    ldr r0, =(SPI_XIP_COMMAND(FLASH_READ) | SPI_COMMAND_8_BITS | SPI_ADDRESS_BITS(24))
    b start

quad: /* One read with the command, which says that none will precede those to come. */
    str r4, [r3, #SSI_ENABLE]
    ldr r0, =(CTRLR0_QUAD | CTRLR0_FRAME_BITS(32) | CTRLR0_EEPROM_READ)
    str r0, [r3, #SSI_CTRLR0]
    str r4, [r3, #SSI_CTRLR1]
    ldr r0, =(SPI_COMMAND_8_BITS | SPI_ADDRESS_BITS(32) | SPI_WAIT_CLOCKS(4) | SPI_ADDRESS_QUAD)
    movs r1, #SSI_SPI_CTRLR0
    str r0, [r3, r1]
    str r5, [r3, #SSI_ENABLE]
    movs r0, #FLASH_READ_QUAD
    movs r6, #MODE_CONTINUOUS /* in place of the address's last byte: address 0 */
    bl send
    str r4, [r3, #SSI_ENABLE]
    ldr r0, =(SPI_XIP_COMMAND(MODE_CONTINUOUS) | SPI_ADDRESS_BITS(32) | SPI_WAIT_CLOCKS(4) | \
              SPI_ALL_QUAD)

start: /* r0: how the controller reads what the processor asks for. */
    movs r1, #SSI_SPI_CTRLR0
    str r0, [r3, r1]
    str r5, [r3, #SSI_ENABLE]
    ldr r0, =VECTORS
    ldr r1, =SCB_VTOR
    str r0, [r1]
    ldmia r0, {r0, r1}
    msr msp, r0
    bx r1

/* Tells by the flag Z that the flash's quad bit is not set. */
    .thumb_func
read_status_2:
    mov r7, lr
    movs r0, #FLASH_READ_STATUS_2
    bl send
    tst r0, r6
    bx r7

/* Sends r0 and r6. Returns in r0 what came back for the second. */
    .thumb_func
send:
    str r0, [r3, #SSI_DR0]
    str r6, [r3, #SSI_DR0]
    .thumb_func
finish: /* reading more bytes than came is harmless */
    ldr r0, [r3, #SSI_SR]
    movs r1, #(SR_TX_EMPTY | SR_BUSY)
    ands r0, r1
    cmp r0, #SR_TX_EMPTY
    bne finish
    ldr r0, [r3, #SSI_DR0]
    ldr r0, [r3, #SSI_DR0]
    bx lr

    .balign 4
    .ltorg
    .org ek_boot2 + 252 /* fails to assemble where the code is longer */
    .word 0             /* CRC-32 of the 252 bytes before */
