/* Clock, UART and timer of STM32F4 (reference manuals RM0090, RM0368, RM0383, RM0390).
 *
 * The core runs from the PLL at EK_CORE_CLOCK_HZ. Every step has a time-out: without the crystal
 * the PLL takes the internal oscillator of 16 MHz, and without the PLL that oscillator drives
 * the core; UART and timer are set for the clock that is there.
 *
 * What differs between the chips is in the board's file: EK_PLL_N and EK_PLL_P (the core's clock
 * is 1 MHz * N / P), EK_HSE_HZ (the external clock; 0: none is used) and EK_HSE_BYPASS (1: it is
 * a clock and not a crystal), EK_FLASH_WAIT_STATES, EK_PWR_VOS (the voltage scale's bits in
 * PWR_CR), EK_PWR_OVERDRIVE, EK_APB1_DIVIDER and EK_APB2_DIVIDER, and the UART's pins on port A.
 */
#include <stdint.h>

#include "ek_board.h"
#include "ek_cortex_m.h"
#include "ek_port.h"
#include "ek_ticks.h"

#define RCC_CR EK_REGISTER(0x40023800u)
#define RCC_PLLCFGR EK_REGISTER(0x40023804u)
#define RCC_CFGR EK_REGISTER(0x40023808u)
#define RCC_AHB1ENR EK_REGISTER(0x40023830u)
#define RCC_APB1ENR EK_REGISTER(0x40023840u)
#define RCC_APB2ENR EK_REGISTER(0x40023844u)
#define RCC_CR_HSION (1u << 0)
#define RCC_CR_HSIRDY (1u << 1)
#define RCC_CR_HSEON (1u << 16)
#define RCC_CR_HSERDY (1u << 17)
#define RCC_CR_HSEBYP (1u << 18)
#define RCC_CR_PLLON (1u << 24)
#define RCC_CR_PLLRDY (1u << 25)
#define RCC_PLLCFGR_HSE (1u << 22)
#define RCC_PLLCFGR_Q (9u << 24) /* at most 48 MHz for what is not used here */
#define RCC_PLLCFGR_R (2u << 28) /* the value after a reset, where it is reserved too */
#define RCC_CFGR_SW 3u
#define RCC_CFGR_SW_PLL 2u
#define RCC_CFGR_SWS (3u << 2)
#define RCC_CFGR_SWS_PLL (2u << 2)
#define RCC_AHB1ENR_GPIOA (1u << 0)
#define RCC_APB1ENR_TIM2 (1u << 0)
#define RCC_APB1ENR_USART2 (1u << 17)
#define RCC_APB1ENR_PWR (1u << 28)
#define RCC_APB2ENR_USART1 (1u << 4)

#define FLASH_ACR EK_REGISTER(0x40023C00u)
#define FLASH_ACR_PREFETCH_AND_CACHES (7u << 8)

#define PWR_CR EK_REGISTER(0x40007000u)
#define PWR_CSR EK_REGISTER(0x40007004u)
#define PWR_CR_VOS (3u << 14)
#define PWR_CR_ODEN (1u << 16)
#define PWR_CR_ODSWEN (1u << 17)
#define PWR_CSR_ODRDY (1u << 16)
#define PWR_CSR_ODSWRDY (1u << 17)

#define GPIOA_MODER EK_REGISTER(0x40020000u)
#define GPIOA_PUPDR EK_REGISTER(0x4002000Cu)
#define GPIOA_AFR(pin) EK_REGISTER(0x40020020u + 4u * ((pin) / 8u))

#define USART_SR EK_REGISTER(EK_UART_ADDRESS + 0x00u)
#define USART_DR EK_REGISTER(EK_UART_ADDRESS + 0x04u)
#define USART_BRR EK_REGISTER(EK_UART_ADDRESS + 0x08u)
#define USART_CR1 EK_REGISTER(EK_UART_ADDRESS + 0x0Cu)
#define USART_SR_ORE (1u << 3)
#define USART_SR_RXNE (1u << 5)
#define USART_SR_TXE (1u << 7)
#define USART_CR1_ON (0x2000u | 0x20u | 0x08u | 0x04u) /* UE, RXNEIE, TE, RE */
#define USART1_ADDRESS 0x40011000u
#define USART2_ADDRESS 0x40004400u

#define TIM_CR1 EK_REGISTER(EK_TIMER_ADDRESS + 0x00u)
#define TIM_DIER EK_REGISTER(EK_TIMER_ADDRESS + 0x0Cu)
#define TIM_SR EK_REGISTER(EK_TIMER_ADDRESS + 0x10u)
#define TIM_EGR EK_REGISTER(EK_TIMER_ADDRESS + 0x14u)
#define TIM_CNT EK_REGISTER(EK_TIMER_ADDRESS + 0x24u)
#define TIM_PSC EK_REGISTER(EK_TIMER_ADDRESS + 0x28u)
#define TIM_ARR EK_REGISTER(EK_TIMER_ADDRESS + 0x2Cu)
#define TIM2_ADDRESS 0x40000000u

#define HSI_HZ 16000000u
#define PLL_INPUT_HZ 1000000u
#define TICKS_PER_US 2u
#define POLLS 20000u /* some 10 ms at 16 MHz; a crystal takes 2 */

#if EK_CORE_CLOCK_HZ != PLL_INPUT_HZ / EK_PLL_P * EK_PLL_N
#error "clock.hz is not what the PLL makes of EK_PLL_N and EK_PLL_P"
#endif
#if EK_HSE_HZ % PLL_INPUT_HZ != 0u
#error "the external clock has to be a multiple of 1 MHz"
#endif
#if EK_UART_ADDRESS != USART1_ADDRESS && EK_UART_ADDRESS != USART2_ADDRESS
#error "the UART has to be USART1 or USART2"
#endif
#if EK_TIMER_ADDRESS != TIM2_ADDRESS
#error "the timer has to be TIM2, whose counter has 32 bits"
#endif

static struct ek_ticks ticks;

/* Waits until some bits of a register have a value. Returns whether they came to it. */
static int wait_for(volatile const uint32_t *address, uint32_t bits, uint32_t value)
{
    for (uint32_t i = 0; i < POLLS; ++i) {
        if ((*address & bits) == value) {
            return 1;
        }
    }
    return 0;
}

/* Back to the internal oscillator, wherever a bootloader has left the clock. */
static void use_internal_oscillator(void)
{
    RCC_CR |= RCC_CR_HSION;
    (void)wait_for(&RCC_CR, RCC_CR_HSIRDY, RCC_CR_HSIRDY);
    RCC_CFGR = 0;
    (void)wait_for(&RCC_CFGR, RCC_CFGR_SWS, 0u);
    RCC_CR &= ~RCC_CR_PLLON;
    (void)wait_for(&RCC_CR, RCC_CR_PLLRDY, 0u);
}

/* What the PLL is given: the external clock where it runs, else the internal one. */
static uint32_t choose_pll_input(void)
{
#if EK_HSE_HZ
    RCC_CR |= RCC_CR_HSEON | (EK_HSE_BYPASS ? RCC_CR_HSEBYP : 0u);
    if (wait_for(&RCC_CR, RCC_CR_HSERDY, RCC_CR_HSERDY)) {
        return RCC_PLLCFGR_HSE | (EK_HSE_HZ / PLL_INPUT_HZ);
    }
    RCC_CR &= ~(RCC_CR_HSEON | RCC_CR_HSEBYP);
#endif
    return HSI_HZ / PLL_INPUT_HZ;
}

static int enable_overdrive(void)
{
#if EK_PWR_OVERDRIVE
    PWR_CR |= PWR_CR_ODEN;
    if (!wait_for(&PWR_CSR, PWR_CSR_ODRDY, PWR_CSR_ODRDY)) {
        return 0;
    }
    PWR_CR |= PWR_CR_ODSWEN;
    return wait_for(&PWR_CSR, PWR_CSR_ODSWRDY, PWR_CSR_ODSWRDY);
#else
    return 1;
#endif
}

/* CFGR's code of a bus divider: 1, 2 or 4. */
static uint32_t divider_code(uint32_t divider)
{
    return divider == 1u ? 0u : 3u + divider / 2u;
}

/* Brings the core to its full speed. Returns whether it runs at it. */
static int start_pll(void)
{
    RCC_APB1ENR |= RCC_APB1ENR_PWR;
    (void)RCC_APB1ENR; /* a peripheral's clock takes a moment */
    PWR_CR = (PWR_CR & ~PWR_CR_VOS) | EK_PWR_VOS;
    RCC_PLLCFGR = choose_pll_input() | (EK_PLL_N << 6) | ((EK_PLL_P / 2u - 1u) << 16) |
                  RCC_PLLCFGR_Q | RCC_PLLCFGR_R;
    RCC_CR |= RCC_CR_PLLON;
    if (!enable_overdrive() || !wait_for(&RCC_CR, RCC_CR_PLLRDY, RCC_CR_PLLRDY)) {
        return 0;
    }
    FLASH_ACR = FLASH_ACR_PREFETCH_AND_CACHES | EK_FLASH_WAIT_STATES;
    (void)wait_for(&FLASH_ACR, 15u, EK_FLASH_WAIT_STATES);
    RCC_CFGR = (divider_code(EK_APB1_DIVIDER) << 10) | (divider_code(EK_APB2_DIVIDER) << 13);
    RCC_CFGR |= RCC_CFGR_SW_PLL;
    if (wait_for(&RCC_CFGR, RCC_CFGR_SWS, RCC_CFGR_SWS_PLL)) {
        return 1;
    }
    RCC_CFGR = 0;
    return 0;
}

/* Gives a pin of port A to the UART: alternate function 7, with a pull-up for an open line. */
static void use_pin(uint32_t pin)
{
    const uint32_t function_at = 4u * (pin % 8u);
    GPIOA_AFR(pin) = (GPIOA_AFR(pin) & ~(15u << function_at)) | (7u << function_at);
    GPIOA_PUPDR = (GPIOA_PUPDR & ~(3u << (2u * pin))) | (1u << (2u * pin));
    GPIOA_MODER = (GPIOA_MODER & ~(3u << (2u * pin))) | (2u << (2u * pin));
}

static void start_uart(uint32_t clock_hz)
{
    RCC_AHB1ENR |= RCC_AHB1ENR_GPIOA;
#if EK_UART_ADDRESS == USART1_ADDRESS
    RCC_APB2ENR |= RCC_APB2ENR_USART1;
    (void)RCC_APB2ENR;
#else
    RCC_APB1ENR |= RCC_APB1ENR_USART2;
    (void)RCC_APB1ENR;
#endif
    use_pin(EK_UART_TX_PIN);
    use_pin(EK_UART_RX_PIN);
    USART_CR1 = 0;
    USART_BRR = (clock_hz + EK_UART_BAUD / 2u) / EK_UART_BAUD;
    USART_CR1 = USART_CR1_ON;
}

static void start_timer(uint32_t clock_hz)
{
    RCC_APB1ENR |= RCC_APB1ENR_TIM2;
    (void)RCC_APB1ENR;
    TIM_PSC = clock_hz / (TICKS_PER_US * 1000000u) - 1u;
    TIM_ARR = 0xFFFFFFFFu;
    TIM_EGR = 1u; /* takes over the divider */
    TIM_SR = 0;
    TIM_DIER = 1u; /* an interrupt at each wrap */
    TIM_CR1 = 1u;
}

void ek_port_init(void)
{
    uint32_t uart_hz = HSI_HZ;
    uint32_t timer_hz = HSI_HZ;
    ek_forget_interrupts();
    use_internal_oscillator();
    if (start_pll()) {
        uart_hz = EK_UART_CLOCK_HZ;
        timer_hz = EK_TIMER_CLOCK_HZ;
    }
    start_uart(uart_hz);
    start_timer(timer_hz);
}

struct ek_time ek_port_now(void)
{
    return ek_ticks_update(&ticks, TIM_CNT, TICKS_PER_US);
}

uint8_t ek_port_get(void)
{
    while ((USART_SR & USART_SR_RXNE) == 0u) {
        ek_sleep_until_interrupt(EK_UART_INTERRUPT, EK_TIMER_INTERRUPT);
        (void)ek_port_now(); /* the timer wakes the core before its counter wraps again */
        TIM_SR = 0;
        if ((USART_SR & (USART_SR_ORE | USART_SR_RXNE)) == USART_SR_ORE) {
            (void)USART_DR; /* with the status just read, this ends an overrun */
        }
        EK_NVIC_ICPR(EK_TIMER_INTERRUPT) = EK_NVIC_BIT(EK_TIMER_INTERRUPT);
        EK_NVIC_ICPR(EK_UART_INTERRUPT) = EK_NVIC_BIT(EK_UART_INTERRUPT);
    }
    return (uint8_t)USART_DR;
}

void ek_port_put(uint8_t byte)
{
    while ((USART_SR & USART_SR_TXE) == 0u) {
    }
    USART_DR = byte;
}
