use super::*;

#[test]
fn a_send_window_may_go_negative_and_recovers() {
    let mut window = SendWindow::new(100);
    window.debit(100);
    window.shift(-60).unwrap();
    assert_eq!(window.available(), 0);
    window.shift(60).unwrap();
    assert_eq!(window.available(), 0);
    window.shift(1).unwrap();
    assert_eq!(window.available(), 1);
}

#[test]
fn a_send_window_above_the_maximum_is_an_overflow() {
    let mut window = SendWindow::new(WINDOW_MAX - 1);
    window.shift(1).unwrap();
    assert_eq!(window.shift(1), Err(WindowOverflow));
    assert_eq!(window.available(), WINDOW_MAX as usize);
}

#[test]
fn a_receive_window_returns_credit_at_half() {
    let mut window = ReceiveWindow::new(100, 0);
    assert!(window.debit(60));
    assert_eq!(window.undelivered(), 60);
    window.deliver(50);
    window.refund(10);
    assert_eq!(window.undelivered(), 0);
    assert_eq!(window.update(1_000), None);
    assert_eq!(window.consume(39), 39);
    assert_eq!(window.update(1_000), None);
    assert_eq!(window.consume(100), 11);
    assert_eq!(window.update(1_000), Some(60));
    assert!(window.debit(100));
    assert!(!window.debit(1));
}

#[test]
fn a_window_doubles_only_while_the_application_keeps_up() {
    let mut window = ReceiveWindow::new(100, 0);
    assert!(window.debit(100));
    window.deliver(100);
    window.consume(50);
    window.grow(1_000, WINDOW_GROWTH_MS + 1);
    assert_eq!(window.target(), 100, "half of the window took too long");
    window.grow(1_000, WINDOW_GROWTH_MS);
    assert_eq!((window.target(), window.update(WINDOW_GROWTH_MS)), (200, Some(150)));

    assert!(window.debit(150));
    window.deliver(150);
    window.consume(99);
    window.grow(1_000, WINDOW_GROWTH_MS);
    assert_eq!(window.target(), 200, "too much is outstanding");
    window.consume(101);
    window.grow(250, WINDOW_GROWTH_MS);
    assert_eq!((window.target(), window.update(WINDOW_GROWTH_MS)), (250, Some(250)));
    assert_eq!(window.undelivered(), 0);
}

#[test]
fn a_window_of_one_byte_still_moves() {
    let mut window = ReceiveWindow::new(1, 0);
    assert!(window.debit(1));
    window.deliver(1);
    window.consume(1);
    assert_eq!(window.update(0), Some(1));
}
