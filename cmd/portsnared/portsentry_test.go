package main

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/portsnare/portsnare/internal/nettest"
)

// A sentry is a place for a daemon that runs as PortSentry: a host, one to probe
// it from, a directory to work in, and an /etc and a /dev/log that nobody else
// sees.
type sentry struct {
	scanner, target *nettest.Host
	dir             string          // where relative names lead, with etc and dev in it
	syslog          *nettest.Output // what came to /dev/log, a line for each message
}

func newSentry(t *testing.T) *sentry {
	t.Helper()
	s := &sentry{dir: t.TempDir(), syslog: new(nettest.Output)}
	s.scanner, s.target = nettest.NewPair(t)
	for _, dir := range []string{"etc/portsentry", "dev"} {
		if err := os.MkdirAll(filepath.Join(s.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"etc/hosts", "etc/resolv.conf", "etc/hosts.deny", "dev/null"} {
		s.write(t, file, "")
	}
	s.listenToSyslog(t)
	return s
}

// listenToSyslog reads what is sent to the sentry's /dev/log. Names of sockets
// are short: the one of the directory would not fit.
func (s *sentry) listenToSyslog(t *testing.T) {
	t.Helper()
	socket := "/run/syslog-of-" + s.target.Name
	peer, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(socket, filepath.Join(s.dir, "dev/log")); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		message := make([]byte, 8192)
		for {
			n, err := peer.Read(message)
			if err != nil {
				return
			}
			_, _ = s.syslog.Write(append(message[:n:n], '\n')) // it refuses 64 MiB and more
		}
	}()
	t.Cleanup(func() {
		peer.Close()
		<-read
		if t.Failed() {
			t.Logf("syslog:\n%s", s.syslog)
		}
	})
}

// write writes a file of the sentry's directory.
func (s *sentry) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// read returns what a file of the sentry's directory holds, "" if there is none.
func (s *sentry) read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return string(text)
}

// ownFiles puts the sentry's /etc and /dev in the place of the machine's, for the
// program that it then becomes.
const ownFiles = `mount --bind /dev/null "$0/dev/null" && mount --rbind "$0/dev" /dev && mount --bind "$0/etc" /etc && cd "$0" && exec env "$@"`

// start starts the daemon as PortSentry with the given arguments.
func (s *sentry) start(t *testing.T, args ...string) *nettest.Process {
	t.Helper()
	command := s.command(t, args...)
	return s.target.Start(t, command[0], command[1:]...)
}

// command returns the command that starts the daemon on the target.
func (s *sentry) command(t *testing.T, args ...string) []string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// A program built for the race detector sleeps a second at its end, unless told.
	daemon := []string{asProgram + "=1", "GORACE=atexit_sleep_ms=0", self, personalityFlag, portSentry}
	return slices.Concat([]string{"unshare", "--mount", "sh", "-c", ownFiles, s.dir}, daemon, args)
}

// script writes a program for /bin/sh into the sentry's directory.
func (s *sentry) script(t *testing.T, name, text string) {
	t.Helper()
	s.write(t, name, "#!/bin/sh\n"+text+"\n")
	if err := os.Chmod(filepath.Join(s.dir, name), 0o755); err != nil {
		t.Fatal(err)
	}
}

// holds waits until a file of the sentry's directory holds text and nothing else.
func (s *sentry) holds(t *testing.T, name, want string) {
	t.Helper()
	nettest.WaitFor(t, name+" with "+want, func() bool { return s.read(t, name) == want })
}

// A syslogLine is a message at /dev/log, taken apart.
type syslogLine struct {
	PRI, PID int
	Text     string
}

var syslogHead = regexp.MustCompile(`^<(\d+)>[A-Z][a-z]{2} [ 1-3][0-9] [0-9:]{8} portsentry\[(\d+)\]: (.*)$`)

// syslogLines returns what came to the sentry's /dev/log, and fails the test if
// any of it is from somebody else than PortSentry.
func (s *sentry) syslogLines(t *testing.T) (lines []syslogLine) {
	t.Helper()
	for _, message := range s.syslog.Lines() {
		m := syslogHead.FindStringSubmatch(message)
		if m == nil {
			t.Fatalf("%q is no message of portsentry[pid]", message)
		}
		line := syslogLine{Text: m[3]}
		line.PRI, _ = strconv.Atoi(m[1])
		line.PID, _ = strconv.Atoi(m[2])
		lines = append(lines, line)
	}
	return lines
}

// waitSyslog waits for a message with text and returns it.
func (s *sentry) waitSyslog(t *testing.T, text string) syslogLine {
	t.Helper()
	s.syslog.WaitLine(t, text)
	lines := s.syslogLines(t)
	return lines[slices.IndexFunc(lines, func(l syslogLine) bool { return strings.Contains(l.Text, text) })]
}

// A background is a daemon that is no child of the one that started it.
type background struct{ *os.Process }

// daemonOf returns the daemon in the background that wrote line. It ends with the
// test at the latest.
func daemonOf(t *testing.T, line syslogLine) background {
	t.Helper()
	process, err := os.FindProcess(line.PID)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = process.Kill() }) // it has ended, if the test went well
	return background{process}
}

// stop sends a signal and checks that the daemon ends with a status, in time. The
// daemon is ours to wait for: this process is init to all that tests start.
func (b background) stop(t *testing.T, sig os.Signal, status int) {
	t.Helper()
	began := time.Now()
	if err := b.Signal(sig); err != nil {
		t.Fatal(err)
	}
	state, err := b.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); state.ExitCode() != status || took > endLimit {
		t.Errorf("after %v the daemon ended with %v in %v, want exit status %d within %v", sig, state, took, status, endLimit)
	}
}

// probe sends one probe to a port of the target's, as any program does, and
// returns what comes back on the connection.
func (s *sentry) probe(t *testing.T, network string, to netip.Addr, port uint16) string {
	t.Helper()
	return probeFrom(t, s.scanner, network, netip.AddrPortFrom(to, port))
}

func probeFrom(t *testing.T, host *nettest.Host, network string, to netip.AddrPort) (answer string) {
	t.Helper()
	var conn net.Conn
	var err error
	host.Do(t, func() { conn, err = net.Dial(network, to.String()) })
	if errors.Is(err, syscall.ECONNREFUSED) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if network == "udp" {
		if _, err := conn.Write([]byte("who is there")); err != nil {
			t.Fatal(err)
		}
		return ""
	}
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(conn)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatal(err)
	}
	return string(text)
}

// waitLines waits until n lines contain text.
func waitLines(t *testing.T, out *nettest.Output, n int, text string) {
	t.Helper()
	nettest.WaitFor(t, text, func() bool { return countLines(out, text) >= n })
}

func countLines(out *nettest.Output, text string) (n int) {
	for _, line := range out.Lines() {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}
