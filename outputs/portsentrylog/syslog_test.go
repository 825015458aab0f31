package portsentrylog

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/internal/nettest"
	"github.com/portsnare/portsnare/parsers/logline"
)

func newSyslog(t *testing.T, socket string, form Form) *Syslog {
	t.Helper()
	s := NewSyslog(SyslogOptions{Socket: socket, Tag: "portsentry", Form: form, PID: 1234, Zone: time.UTC})
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// listen takes the place of a syslog daemon.
func listen(t *testing.T, socket string) *net.UnixConn {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func stop(t *testing.T, peer *net.UnixConn, socket string) {
	t.Helper()
	if err := errors.Join(peer.Close(), os.Remove(socket)); err != nil {
		t.Fatal(err)
	}
}

func message(port string) string {
	return "<29>Nov  2 07:44:33 portsentry[1234]: " + line(port)
}

// wantMessages reads exactly the messages about ports from peer.
func wantMessages(t *testing.T, peer *net.UnixConn, ports ...string) {
	t.Helper()
	buf := make([]byte, 2048)
	for _, port := range ports {
		if err := peer.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := peer.Read(buf)
		if err != nil {
			t.Fatalf("no message about port %s: %v", port, err)
		}
		if got := string(buf[:n]); got != message(port) {
			t.Errorf("got  %q\nwant %q", got, message(port))
		}
	}
	if n := pending(t, peer, buf); n > 0 {
		t.Errorf("one message too many: %q", buf[:n])
	}
}

// pending reads without waiting: what Deliver sent is there.
func pending(t *testing.T, peer *net.UnixConn, buf []byte) (n int) {
	t.Helper()
	raw, err := peer.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Read(func(fd uintptr) bool {
		n, _ = syscall.Read(int(fd), buf)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

func mustDeliver(t *testing.T, s *Syslog, events []detector.Event) {
	t.Helper()
	if err := s.Deliver(t.Context(), events); err != nil {
		t.Fatalf("Deliver: %v", err)
	}
}

func TestSyslog(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "log")
	peer := listen(t, socket)
	s := newSyslog(t, socket, nil)
	mustDeliver(t, s, append(probes(1), started, probe(7)))
	mustDeliver(t, s, probes(9))
	wantMessages(t, peer, "1", "7", "9")
}

// Each line has the severity that PortSentry 2 gives it.
func TestSyslogSeverities(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "log")
	peer := listen(t, socket)
	s := newSyslog(t, socket, logline.PortSentry2{Verbose: true, Debug: true, IgnoreFile: "ignore"}.AppendLines)
	mustDeliver(t, s, []detector.Event{outcomes["the ban failed"].probe(1), outcomes["ignored"].probe(1), outcomes["from this host itself"].probe(1)})
	if err := s.Print(t.Context(), logline.Normal, "Portsentry is now active and listening."); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"<27>", "attackalert: Error during target dispose 203.0.113.7/203.0.113.7!",
		"<29>", "Scan from: ",
		"<30>", "Host: 203.0.113.7 found in ignore file ignore, aborting actions",
		"<29>", "Scan from: ",
		"<31>", "debug: Source address 203.0.113.7 same as destination address 203.0.113.7, skipping",
		"<29>", "Scan from: ",
		"<29>", "Portsentry is now active and listening.",
	}
	got := <-receive(peer, len(want)/2)
	for i, msg := range got {
		if priority, text := want[2*i], want[2*i+1]; !strings.HasPrefix(msg, priority) || !strings.Contains(msg, "portsentry[1234]: "+text) {
			t.Errorf("message %d is %q, want %s and %q", i, msg, priority, text)
		}
	}
}

func TestSyslogComesLate(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "log")
	s := newSyslog(t, socket, nil)
	for range 2 {
		if err := s.Deliver(t.Context(), probes(1)); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("Deliver without a socket = %v, want %v", err, os.ErrNotExist)
		}
	}
	peer := listen(t, socket)
	mustDeliver(t, s, probes(1))
	wantMessages(t, peer, "1")
}

func TestSyslogRestarts(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "log")
	s := newSyslog(t, socket, nil)
	peer := listen(t, socket)
	mustDeliver(t, s, probes(1))
	wantMessages(t, peer, "1")
	stop(t, peer, socket)
	if err := s.Deliver(t.Context(), probes(7)); err == nil {
		t.Fatal("Deliver to a daemon that has gone: no error")
	}
	peer = listen(t, socket)
	mustDeliver(t, s, probes(7, 9))
	wantMessages(t, peer, "7", "9")
}

// A line about the daemon gets through to a syslog daemon that has started anew.
func TestPrintAfterARestart(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "log")
	s := newSyslog(t, socket, nil)
	peer := listen(t, socket)
	say := func(text string) {
		t.Helper()
		if err := s.Print(t.Context(), logline.Normal, text); err != nil {
			t.Fatal(err)
		}
	}
	say("one")
	stop(t, peer, socket)
	peer = listen(t, socket)
	say("two")
	if got := <-receive(peer, 1); len(got) != 1 || !strings.HasSuffix(got[0], ": two") {
		t.Errorf("the new daemon got %q, want the second line", got)
	}
}

// receive reads n messages, or fewer if peer is closed.
func receive(peer *net.UnixConn, n int) <-chan []string {
	received := make(chan []string, 1)
	go func() {
		var got []string
		buf := make([]byte, 2048)
		for len(got) < n {
			size, err := peer.Read(buf)
			if err != nil {
				break
			}
			got = append(got, string(buf[:size]))
		}
		received <- got
	}()
	return received
}

// A daemon that reads nothing costs a bounded time. What it got before it got
// stuck is not sent again.
func TestSyslogIsStuck(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "log")
	peer := listen(t, socket)
	s := newSyslog(t, socket, nil)

	const batch = 2048 // more than any queue of datagrams holds
	var events []detector.Event
	for port := range uint16(batch) {
		events = append(events, probe(port+1))
	}
	began := time.Now()
	err := s.Deliver(t.Context(), events)
	if took := time.Since(began); !errors.Is(err, os.ErrDeadlineExceeded) || took > 5*syslogPatience {
		t.Fatalf("Deliver = %v after %v, want %v after %v", err, took, os.ErrDeadlineExceeded, syslogPatience)
	}

	received := receive(peer, batch)
	mustDeliver(t, s, events)
	got := <-received
	for i, msg := range got {
		if want := message(strconv.Itoa(i + 1)); msg != want {
			t.Fatalf("message %d is %q, want %q", i, msg, want)
		}
	}
	if n := pending(t, peer, make([]byte, 2048)); len(got) != batch || n > 0 {
		t.Errorf("%d messages and %d bytes more, want %d", len(got), n, batch)
	}
}

// Some syslog daemons listen on a stream socket.
func TestSyslogOverAStream(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "log")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	s := newSyslog(t, socket, nil)
	mustDeliver(t, s, probes(1, 7))
	peer, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(peer)
	if err != nil {
		t.Fatal(err)
	}
	if want := message("1") + "\n" + message("7") + "\n"; string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// alert returns the messages about a SYN with IP options to a port, in the lines
// of PortSentry 1.2.
func alert(port string) []string {
	const head = "<29>Nov  2 07:44:33 portsentry[1234]: attackalert: "
	return []string{
		head + "TCP SYN/Normal scan from host: 203.0.113.7/203.0.113.7 to TCP port: " + port,
		head + "Packet from host: 203.0.113.7/203.0.113.7 to TCP port: " + port +
			" has IP options set (detection avoidance technique).",
		head + "Ignoring TCP response per configuration file setting.",
	}
}

// Each line of PortSentry 1.2 is a message, and none is sent twice if the daemon
// gets stuck between those about one probe.
func TestSyslogOfPortSentry1(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "log")
	peer := listen(t, socket)
	s := newSyslog(t, socket, logline.PortSentry1{}.AppendLines)
	const batch = 1024 // with three messages each, more than any queue of datagrams holds
	var events []detector.Event
	var want []string
	for port := range uint16(batch) {
		ev := probe(port + 1)
		ev.Probe.IPOptions = detector.True
		events = append(events, started, outcomes["ignored"].probe(port+1), ev)
		want = append(want, alert(strconv.Itoa(int(port)+1))...)
	}
	for i := range events {
		events[i].Sequence = uint64(i) + 1
	}

	// With room for one message more each time, it gets stuck after each of the
	// lines about one probe.
	var got []string
	buf := make([]byte, 2048)
	for range 4 {
		hurried, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		if err := s.Deliver(hurried, events); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("Deliver = %v, want %v", err, os.ErrDeadlineExceeded)
		}
		cancel()
		got = append(got, string(buf[:pending(t, peer, buf)]))
	}
	rest := receive(peer, len(want)-len(got))
	mustDeliver(t, s, events)
	got = append(got, <-rest...)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("messages (-want +got)\n%s", diff)
	}
	if n := pending(t, peer, buf); n > 0 {
		t.Errorf("one message too many: %q", buf[:n])
	}
}

const rsyslogConf = `
module(load="imuxsock" SysSock.Name="DIR/log" SysSock.UseSysTimeStamp="off" SysSock.IgnoreTimestamp="off")
template(name="facts" type="string"
  string="%syslogfacility-text% %syslogseverity-text% %programname% %procid% %timestamp:::date-rfc3164% %msg%\n")
*.* action(type="omfile" file="DIR/messages" template="facts")
`

// What we send, a real syslog daemon must understand.
func TestSyslogToRsyslogd(t *testing.T) {
	rsyslogd, err := exec.LookPath("rsyslogd")
	if err != nil {
		t.Fatalf("%v: apt-get install rsyslog", err)
	}
	socket := filepath.Join(t.TempDir(), "log")
	dir := filepath.Dir(socket)
	conf := filepath.Join(dir, "conf")
	if err := os.WriteFile(conf, []byte(strings.ReplaceAll(rsyslogConf, "DIR", dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	var output bytes.Buffer
	cmd := exec.CommandContext(t.Context(), rsyslogd, "-n", "-f", conf, "-i", filepath.Join(dir, "pid"))
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Wait() // ended by the signal
		if t.Failed() {
			t.Logf("rsyslogd: %s", &output)
		}
	})

	s := newSyslog(t, socket, nil)
	nettest.WaitFor(t, "rsyslogd's socket", func() bool {
		return s.Deliver(t.Context(), []detector.Event{started}) == nil
	})
	mustDeliver(t, s, probes(1, 7))
	const facts = "daemon notice portsentry 1234 Nov  2 07:44:33  "
	want := facts + line("1") + "\n" + facts + line("7") + "\n"
	var got []byte
	nettest.WaitFor(t, "two messages in rsyslogd's file", func() bool {
		got, err = os.ReadFile(filepath.Join(dir, "messages"))
		return bytes.Count(got, []byte("port: [")) >= 2
	})
	if !strings.HasSuffix(string(got), want) {
		t.Errorf("rsyslogd wrote %q, want %q at the end", got, want)
	}
}

func TestSyslogAllocatesNothing(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "log")
	peer := listen(t, socket)
	go func() { _, _ = io.Copy(io.Discard, peer) }()
	s := newSyslog(t, socket, nil)
	mustDeliver(t, s, probes(1))
	few, many := probes(1), probes(1, 2, 3, 4, 5, 6, 7, 8)
	allocations := func(events []detector.Event) float64 {
		return testing.AllocsPerRun(100, func() { mustDeliver(t, s, events) })
	}
	if one, eight := allocations(few), allocations(many); eight > one {
		t.Errorf("%v allocations for eight events, %v for one: want no more", eight, one)
	}
}
