package main

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/internal/nettest"
	"github.com/portsnare/portsnare/internal/version"
)

// A refusal is a run of the daemon as PortSentry 2 that ends before it watches.
type refusal struct {
	name    string
	args    string            // default: -c portsentry.conf
	config  string            // its portsentry.conf
	files   map[string]string // more files
	prepare func() error      // what else is to be done before; may be nil
}

// The errors of a command line and of a configuration read as PortSentry 2's, on
// the same streams and with the same statuses. What is ours comes after.
func TestWhatPortSentry2Refuses(t *testing.T) {
	const fine = `TCP_PORTS="11"` + "\n"
	ignore := func(name, text string) refusal {
		return refusal{
			name: "ignore file, " + name, args: "--connect -c portsentry.conf",
			config: fine + "IGNORE_FILE=\"ignore\"\n", files: map[string]string{"ignore": text},
		}
	}
	ports := func(token string) refusal {
		return refusal{name: "port " + token, config: `TCP_PORTS="` + token + "\"\n"}
	}
	value := func(key, value string) refusal {
		return refusal{name: key + " " + value, config: fine + key + `="` + value + "\"\n"}
	}
	tests := []refusal{
		{name: "version", args: "-V"},
		{name: "version, abbreviated", args: "--vers"},
		{name: "two modes", args: "--stealth --connect"},
		{name: "a mode twice", args: "--conn --connect"},
		{name: "kinds of interfaces mixed", args: "-i ALL -i eth0"},
		{name: "interface too long", args: "-i abcdefghijklmnop"},
		{name: "method", args: "-m ebpf"},
		{name: "log output", args: "-l file"},
		{name: "path too long", args: "-c " + strings.Repeat("p", 5000)},
		{name: "unknown option", args: "-x"},
		{name: "unknown long option", args: "--colour"},
		{name: "missing argument", args: "-c"},
		{name: "option of PortSentry 1.2", args: "-tcp -d"},

		{name: "no such file", args: "-c absent.conf"},
		{name: "leading blank", config: " TCP_PORTS=\"11\"\n"},
		{name: "lower case", config: "tcp_ports=\"11\"\n"},
		{name: "line of blanks", config: fine + "  \n"},
		{name: "unknown key", config: "# comment\n" + fine + "COLOUR=\"blue\"\n"},
		{name: "key of PortSentry 1.2", config: fine + "ADVANCED_PORTS_TCP=\"1024\"\n"},
		{name: "no equals", config: "TCP_PORTS \"11\"\n"},
		{name: "no opening quote", config: "TCP_PORTS=11\n"},
		{name: "no closing quote", config: "TCP_PORTS=\"11\n"},
		{name: "line too long", config: "TCP_PORTS=\"" + strings.Repeat("11,", 400) + "\"\n"},
		{name: "empty value", config: "TCP_PORTS=\"\"\n"},

		{name: "TCP_PORTS without a port", config: "TCP_PORTS=\",\"\n"},
		{name: "UDP_PORTS without a port", config: fine + "UDP_PORTS=\",,\"\n"},
		value("RESOLVE_HOST", "2"), value("BLOCK_TCP", "3"), value("BLOCK_UDP", "yes"),
		value("KILL_RUN_CMD_FIRST", "-1"), value("SCAN_TRIGGER", "-1"), value("KILL_IGNORE_STATUS", "2"),
		{name: "no ports, stealth", config: "BLOCK_TCP=\"0\"\n"},
		{name: "no ports, connect", args: "--connect -c portsentry.conf", config: "BLOCK_TCP=\"0\"\n"},
		{name: "BLOCK 2 without a command", config: fine + "BLOCK_UDP=\"2\"\n"},
		{name: "BLOCK 1 with a command alone", config: fine + "BLOCK_TCP=\"1\"\nKILL_RUN_CMD=\"true\"\n"},
		{name: "several faults", config: "TCP_PORTS=\"5-1\"\nCOLOUR=\"blue\"\n"},

		ports("abc"), ports("0"), ports("65536"), ports("1 "), ports("-5"), ports("0-5"), ports("1-"),
		ports("1-70000"), ports("1-2-3"), ports("5-1"), ports("10000-200000"),

		{name: "no ignore file", args: "--connect -c portsentry.conf", config: fine + "IGNORE_FILE=\"absent\"\n"},
		ignore("a name", "scanner.example.net\n"), ignore("a dotted mask", "192.0.2.0/255.255.255.0\n"),
		ignore("bits of IPv4", "192.0.2.0/33\n"), ignore("bits of IPv6", "2001:db8::/129\n"), ignore("no address", "192.0.2\n"),

		{name: "history is a directory", args: "--connect -c portsentry.conf", config: fine + "HISTORY_FILE=\".\"\n"},
		{name: "history below a file", args: "--connect -c portsentry.conf", config: fine + "HISTORY_FILE=\"portsentry.conf/history\"\n"},
		{name: "blocked file is a directory", args: "--connect -c portsentry.conf", config: fine + "BLOCKED_FILE=\"/\"\n"},
		{name: "blocked file below a file", args: "--connect -c portsentry.conf", config: fine + "BLOCKED_FILE=\"/dev/null/blocked\"\n"},
		{
			name: "blocked file that anybody can write", args: "--connect -c portsentry.conf",
			config: fine + "BLOCKED_FILE=\"blocked\"\n", files: map[string]string{"blocked": ""},
			prepare: func() error { return errors.Join(os.Chmod(".", 0o1777), os.Chmod("blocked", 0o666)) },
		},
		{
			name: "blocked file of PortSentry 1.2", args: "--connect -c portsentry.conf",
			config: fine + "BLOCKED_FILE=\"blocked\"\n", files: map[string]string{"blocked": listOfPortSentry1},
		},
	}
	var got strings.Builder
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, &got) })
	}
	golden(t, "portsentry2-refuses", []byte(strings.ReplaceAll(got.String(), "portsnare "+version.String(), "portsnare VERSION")))
}

const listOfPortSentry1 = "1795333205 - 11/22/2026 07:40:05 Host: 192.0.2.1/192.0.2.1 Port: 101 TCP Blocked\n"

// run appends what the daemon says, and with which status it ends.
func (r refusal) run(t *testing.T, transcript *strings.Builder) {
	t.Helper()
	t.Chdir(t.TempDir())
	files := map[string]string{"portsentry.conf": r.config}
	maps.Copy(files, r.files)
	for name, text := range files {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if r.prepare != nil {
		if err := r.prepare(); err != nil {
			t.Fatal(err)
		}
	}
	args := strings.Fields(cmp.Or(r.args, "-c portsentry.conf"))
	var stdout, stderr bytes.Buffer
	status := run("/usr/sbin/"+portSentry, args, &stdout, &stderr)
	fmt.Fprintf(transcript, "== %s: status %d\n-- stdout\n%s-- stderr\n%s", r.name, status, &stdout, &stderr)
	for name, text := range files {
		if got := readFile(t, name); got != text {
			t.Errorf("the file %s was changed to %q", name, got)
		}
	}
	if left, err := filepath.Glob("*"); err != nil || len(left) != len(files) {
		t.Errorf("%q are left, %v", left, err)
	}
}

// Lines go to syslog with the severities and under the name of PortSentry 2.
func TestSyslogOfPortSentry2(t *testing.T) {
	t.Parallel()
	s := &scenario{sentry: newSentry(t)}
	s.write(t, "portsentry.conf", commonConfig+portEleven+`IGNORE_FILE="portsentry.ignore"`+"\n"+`BLOCK_TCP="2"`+"\n"+`KILL_RUN_CMD="false"`+"\n")
	s.write(t, "portsentry.ignore", s.scanner.IPv6.String()+"\n")
	s.daemon = s.start(t, strings.Fields("-l syslog -v -d -i ALL -c portsentry.conf")...)
	s.syslog.WaitLine(t, "is now active")
	s.probe(t, "udp", s.target.IPv4, 11)
	s.syslog.WaitLine(t, "protocol: [UDP]")
	s.probe(t, "tcp", s.target.IPv4, 11)
	s.syslog.WaitLine(t, "protocol: [TCP]")
	s.probe(t, "udp", s.target.IPv6, 11)
	s.syslog.WaitLine(t, "ignored: [true]")
	probeFrom(t, s.target, "tcp", netip.AddrPortFrom(s.target.IPv4, 11))
	waitLines(t, s.syslog, 2, "ignored: [true]")
	stopWithin(t, s.daemon, endLimit)

	lines := s.syslogLines(t)
	for text, want := range map[string]int{
		"Portsentry is now active and listening.":                                         29,
		"Scan from: [192.0.2.1] (192.0.2.1) protocol: [UDP] ":                             29,
		"attackalert: Error during target dispose 192.0.2.1/192.0.2.1!":                   27,
		"Ignoring IP: 2001:db8::1/ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff":                30,
		"Host: 2001:db8::1 found in ignore file portsentry.ignore, aborting actions":      30,
		"debug: Source address 192.0.2.2 same as destination address 192.0.2.2, skipping": 31,
		"Ready Device: eth0 ...":      30,
		"  inet4 addr: 192.0.2.2":     30,
		"  inet6 addr: 2001:db8::2":   30,
		"Portsentry is shutting down": 29,
	} {
		i := slices.IndexFunc(lines, func(l syslogLine) bool { return strings.HasPrefix(l.Text, text) })
		switch {
		case i < 0:
			t.Errorf("no message %q", text)
		case lines[i].PRI != want || lines[i].PID != s.daemon.PID():
			t.Errorf("message %+v, want priority %d and process %d", lines[i], want, s.daemon.PID())
		}
	}
	if got := s.daemon.Stdout.Lines(); len(got) != 1 || !strings.HasPrefix(got[0], "Portsentry 2.0.7 (") {
		t.Errorf("standard output has %q, want the first line alone", got)
	}
}

func TestStdoutAndSyslogAtOnce(t *testing.T) {
	t.Parallel()
	s := &scenario{sentry: newSentry(t)}
	s.write(t, "portsentry.conf", portEleven)
	s.begin(t, "-l", "stdout", "--logoutput=syslog")
	s.probe(t, "tcp", s.target.IPv4, 11)
	s.line(t, "^Scan from: ")
	s.syslog.WaitLine(t, "Scan from: ")
	s.end(t)
	var texts []string
	for _, line := range s.syslogLines(t) {
		texts = append(texts, line.Text)
	}
	if diff := gocmp.Diff(s.daemon.Stdout.Lines()[1:], texts); diff != "" {
		t.Errorf("syslog is not what standard output is (-stdout +syslog)\n%s", diff)
	}
}

// With -D the daemon leaves its directory, and still finds the files that were
// named relative to it, also when it reads its configuration again.
func TestDaemonOfPortSentry2(t *testing.T) {
	t.Parallel()
	s := newSentry(t)
	s.write(t, "portsentry.conf", commonConfig+portEleven+block+`KILL_ROUTE="cd '`+s.dir+`'; env > $TARGET$.env; ls -l /proc/self/fd > $TARGET$.fds"`+"\n"+`IGNORE_FILE="portsentry.ignore"`+"\n")
	s.write(t, "portsentry.ignore", "")
	parent := s.start(t, strings.Fields("-D -v -c portsentry.conf")...)
	if err := parent.Wait(t); err != nil {
		t.Fatalf("the program that was started ended with %v", err)
	}
	if got := parent.Stdout.String() + parent.Stderr.String(); !strings.HasPrefix(got, "Portsentry 2.0.7 (") || strings.Count(got, "\n") != 1 {
		t.Errorf("it printed %q, want the first line alone", got)
	}
	active := s.waitSyslog(t, "Portsentry is now active and listening.")
	running := daemonOf(t, active)
	if active.PID == parent.PID() {
		t.Error("the daemon is the process that was started")
	}
	if dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", active.PID)); err != nil || dir != "/" {
		t.Errorf("the daemon is in %q (%v), want /", dir, err)
	}
	if got := readFile(t, fmt.Sprintf("/proc/%d/comm", active.PID)); got != portSentry+"\n" {
		t.Errorf("the daemon is listed as %q, want %s", got, portSentry)
	}
	if session, err := unix.Getsid(active.PID); err != nil || session != active.PID {
		t.Errorf("the daemon is in session %d (%v), want one of its own", session, err)
	}
	s.probe(t, "tcp", s.target.IPv4, 11)
	s.syslog.WaitLine(t, "blocked: [true]")
	nettest.WaitFor(t, "the history", func() bool { return s.read(t, "portsentry.history") != "" })
	if got := len(s.read(t, "portsentry.blocked")); got != 6 {
		t.Errorf("portsentry.blocked has %d bytes, want 6", got)
	}
	if got := s.read(t, "192.0.2.1.env"); got == "" || strings.Contains(got, inBackground) {
		t.Errorf("the command that acts has the environment %q, with what is none of its business", got)
	}
	if got := s.read(t, "192.0.2.1.fds"); !strings.Contains(got, "/dev/null") || strings.Contains(got, "socket:") || strings.Contains(got, "anon_inode:") {
		t.Errorf("the command that acts has the descriptors\n%swant none of the daemon's", got)
	}

	s.write(t, "portsentry.conf", commonConfig+`TCP_PORTS="12"`+"\n"+`IGNORE_FILE="portsentry.ignore"`+"\n")
	s.write(t, "portsentry.ignore", "192.0.2.1\n")
	if err := running.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	s.syslog.WaitLine(t, "configuration reloaded")
	s.probe(t, "tcp", s.target.IPv4, 12)
	s.syslog.WaitLine(t, "port: [12] type: [TCP SYN/Normal scan] IP opts: [not set] ignored: [true]")
	running.stop(t, syscall.SIGTERM, exitOK)
	s.syslog.WaitLine(t, "Portsentry is shutting down")
}

// The parent of a daemon does not know that its child cannot start.
func TestDaemonThatCannotStart(t *testing.T) {
	t.Parallel()
	s := newSentry(t)
	s.write(t, "portsentry.conf", `TCP_PORTS="11"`+"\n"+`IGNORE_FILE="absent"`+"\n")
	if err := s.start(t, strings.Fields("-D -c portsentry.conf")...).Wait(t); err != nil {
		t.Errorf("the program that was started ended with %v", err)
	}
	s.syslog.WaitLine(t, "Portsentry is shutting down")
	var texts []string
	for _, line := range s.syslogLines(t) {
		texts = append(texts, fmt.Sprintf("<%d>%s", line.PRI, strings.ReplaceAll(line.Text, s.dir, "DIR")))
	}
	want := []string{
		"<27>Unable to open ignore file: DIR/absent",
		"<27>DIR/absent: open: no such file or directory",
		"<27>Error initializing ignore file DIR/absent",
		"<27>Could not initialize sentry. Shutting down.",
		"<29>Portsentry is shutting down",
	}
	if diff := gocmp.Diff(want, texts); diff != "" {
		t.Errorf("syslog (-want +got)\n%s", diff)
	}
}

func TestHangupReloadsPortSentry2(t *testing.T) {
	t.Parallel()
	s := &scenario{sentry: newSentry(t)}
	s.write(t, "portsentry.conf", portEleven)
	s.begin(t, "-v")
	change := func(config string, said *nettest.Output, text string) {
		t.Helper()
		s.write(t, "portsentry.conf", config)
		s.daemon.Signal(t, syscall.SIGHUP)
		said.WaitLine(t, text)
	}
	change(`TCP_PORTS="12"`+"\n", s.daemon.Stdout, "configuration reloaded")
	s.probe(t, "tcp", s.target.IPv4, 11)
	s.probe(t, "tcp", s.target.IPv4, 12)
	s.line(t, `^Scan from: .* port: \[12\]`)
	change(`TCP_PORTS="5-1"`+"\n", s.daemon.Stderr, "configuration not reloaded")
	s.probe(t, "tcp", s.target.IPv4, 12)
	waitLines(t, s.daemon.Stdout, 2, "port: [12]")
	s.end(t)
	if got := countLines(s.daemon.Stdout, "port: [11]"); got != 0 {
		t.Errorf("%d reports about a port that was given up, want none", got)
	}
}

// Whoever reads the lines may go: detection stays.
func TestNobodyReadsTheLines(t *testing.T) {
	t.Parallel()
	s := newSentry(t)
	s.write(t, "portsentry.conf", commonConfig+portEleven)
	ours, theirs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	command := s.command(t, "-c", "portsentry.conf")
	daemon := s.target.Command(t.Context(), command[0], command[1:]...)
	daemon.Stdout = theirs
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	for lines := bufio.NewScanner(ours); lines.Scan() && !strings.Contains(lines.Text(), "is now active"); {
	}
	ours.Close()
	for n := range 3 {
		s.probe(t, "tcp", s.target.IPv4, 11)
		nettest.WaitFor(t, "the history", func() bool { return strings.Count(s.read(t, "portsentry.history"), "\n") == n+1 })
	}
	if err := daemon.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := daemon.Wait(); err != nil || time.Since(began) > endLimit {
		t.Errorf("the daemon ended with %v after %v, want status 0 within %v", err, time.Since(began), endLimit)
	}
}

// A command that takes its time does not keep the daemon from ending.
func TestStopWhileACommandRuns(t *testing.T) {
	t.Parallel()
	s := &scenario{sentry: newSentry(t)}
	s.write(t, "portsentry.conf", commonConfig+portEleven+external+`KILL_RUN_CMD="echo $$ > command.pid; exec sleep 600"`+"\n")
	s.begin(t)
	s.probe(t, "tcp", s.target.IPv4, 11)
	nettest.WaitFor(t, "the command", func() bool { return strings.HasSuffix(s.read(t, "command.pid"), "\n") })
	s.end(t)
	pid := strings.TrimSpace(s.read(t, "command.pid"))
	if text, err := os.ReadFile("/proc/" + pid + "/cmdline"); err == nil && len(text) > 0 {
		t.Errorf("the command still runs: %q", text)
	}
	s.size(t, 0, 0)
}

// A syslog daemon that hangs keeps nobody from starting, watching and ending.
func TestSyslogThatHangs(t *testing.T) {
	t.Parallel()
	s := newSentry(t)
	log := filepath.Join(s.dir, "dev/log")
	if err := os.Remove(log); err != nil {
		t.Fatal(err)
	}
	socket := "/run/hanging-syslog-of-" + s.target.Name
	hangs, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer hangs.Close()
	if err := os.Symlink(socket, log); err != nil {
		t.Fatal(err)
	}
	s.write(t, "portsentry.conf", commonConfig+`TCP_PORTS="1-100"`+"\n") // a line for each
	daemon := s.start(t, strings.Fields("--connect -l syslog -c portsentry.conf")...)
	nettest.WaitFor(t, "a record in the history", func() bool {
		s.probe(t, "tcp", s.target.IPv4, 11) // refused, as long as there is no trap
		return s.read(t, "portsentry.history") != ""
	})
	stopWithin(t, daemon, endLimit)
}

func TestInterruptEndsPortSentry2(t *testing.T) {
	t.Parallel()
	s := startScenario(t, "")
	s.daemon.Signal(t, syscall.SIGINT)
	if err := s.daemon.Wait(t); err != nil {
		t.Errorf("it ended with %v, want status 0", err)
	}
	s.line(t, "^Portsentry is shutting down$")
}

func TestLongLinesAreCut(t *testing.T) {
	t.Parallel()
	s := &scenario{sentry: newSentry(t)}
	s.write(t, "portsentry.conf", commonConfig+portEleven+external+`KILL_RUN_CMD="true `+strings.Repeat("x", 1000)+`"`+"\n")
	s.begin(t)
	s.probe(t, "tcp", s.target.IPv4, 11)
	line := s.daemon.Stdout.WaitLine(t, "External command run")
	if len(line) != 1023 || !strings.HasSuffix(line, "xxx...") {
		t.Errorf("the line has %d bytes and ends in %q, want 1023 and ...", len(line), line[len(line)-6:])
	}
	s.end(t)
}

func TestPortSentryNeedsRoot(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const first = "Portsentry 2.0.7 (portsnare "
	for name, tt := range map[string]struct {
		arg            string
		status         int
		stdout, stderr string
	}{
		"2":   {"-v", exitFault, "Portsentry is shutting down\n", rootNeeded + "\n"},
		"1.2": {"-tcp", exitPortSentry1, rootNeeded + "\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			// In a namespace that knows no user, nobody is root.
			cmd := exec.CommandContext(t.Context(), "unshare", "--user", "env", asProgram+"=1", self, personalityFlag, portSentry, tt.arg)
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			if err := cmd.Run(); err == nil || cmd.ProcessState.ExitCode() != tt.status {
				t.Errorf("it ended with %v, want status %d", err, tt.status)
			}
			got := stdout.String()
			if line, rest, _ := strings.Cut(got, "\n"); strings.HasPrefix(line, first) {
				got = rest
			}
			if got != tt.stdout || stderr.String() != tt.stderr {
				t.Errorf("standard output %q, standard error %q, want %q, %q", &stdout, &stderr, tt.stdout, tt.stderr)
			}
		})
	}
}

// What PortSentry 2 says about itself between the first line and the ready line,
// which scripts wait for.
func TestStartOfPortSentry2(t *testing.T) {
	const ready = "Portsentry is now active and listening."
	for name, tt := range map[string]struct {
		args, config   string
		service        string // has TCP port 11 and UDP port 11
		stdout, stderr []string
	}{
		"connect": {
			args:   "--connect",
			stdout: []string{"Listen on AF_INET6: TCP port: 11", "Listen on AF_INET6: TCP port: 111", "Listen on AF_INET6: UDP port: 11", ready},
		},
		"connect, ports in use": {
			args: "--connect -v", service: "tcp",
			stdout: []string{
				"Binding AF_INET6 TCP 11 failed: Address already in use",
				"Listen on AF_INET6: TCP port: 111", "Listen on AF_INET6: UDP port: 11", ready,
			},
			stderr: []string{"Could not bind TCP socket on port 11. Attempting to continue"},
		},
		"stealth": {stdout: []string{ready}},
		"stealth, verbose": {
			args: "-v -i eth0",
			stdout: []string{
				"Ignoring IP: 192.0.2.0/255.255.255.0", "Ignoring IP: 2001:db8::/ffff:ffff:ffff:ffff::",
				"Ready Device: eth0 ...", "  inet4 addr: 192.0.2.2", "  inet6 addr: 2001:db8::2", "  inet6 addr: fe80::2", ready,
			},
			config: `IGNORE_FILE="portsentry.ignore"` + "\n",
		},
		"a device without an address": {
			args:   "-i eth0 -i eth1",
			stdout: []string{ready},
			stderr: []string{"StartDevice: Device eth1 has no addresses, skipping"},
		},
		"raw": {args: "-m raw -v", stdout: []string{ready}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &scenario{sentry: newSentry(t)}
			s.addBareDevice(t, "eth1")
			if tt.service != "" {
				s.target.Listen(t, tt.service, 11)
			}
			s.write(t, "portsentry.conf", `TCP_PORTS="11,111"`+"\n"+`UDP_PORTS="11"`+"\n"+tt.config)
			s.write(t, "portsentry.ignore", "192.0.2.0/24\n2001:db8::/64\n")
			s.begin(t, strings.Fields(tt.args)...)
			s.end(t)
			lines := s.daemon.Stdout.Lines()
			said := lines[1 : slices.Index(lines, ready)+1]
			if diff := gocmp.Diff(tt.stdout, said); diff != "" {
				t.Errorf("standard output (-want +got)\n%s", diff)
			}
			if diff := gocmp.Diff(strings.Join(tt.stderr, "\n"), strings.Join(s.daemon.Stderr.Lines(), "\n")); diff != "" {
				t.Errorf("standard error (-want +got)\n%s", diff)
			}
		})
	}
}

// addBareDevice adds a device without an address to the target.
func (s *sentry) addBareDevice(t *testing.T, name string) {
	t.Helper()
	s.target.Run(t, "ip", "link", "add", name, "type", "veth", "peer", "name", name+"-peer")
	s.target.Run(t, "ip", "link", "set", name, "addrgenmode", "none")
	s.target.Run(t, "ip", "link", "set", name, "up")
}

// Where there is nothing to watch, no script waits for a line in vain.
func TestPortSentry2WithNothingToWatch(t *testing.T) {
	for name, tt := range map[string]struct {
		args   string
		stderr []string
	}{
		"all ports in use":  {"--connect", []string{"Could not bind TCP socket on port 11. Attempting to continue", "Could not bind UDP socket on port 11. Attempting to continue"}},
		"no such interface": {"-i eth9", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSentry(t)
			s.target.Listen(t, "tcp", 11)
			s.target.Listen(t, "udp", 11)
			s.write(t, "portsentry.conf", portEleven)
			daemon := s.start(t, append(strings.Fields(tt.args), "-c", "portsentry.conf")...)
			if err := daemon.Wait(t); err == nil || err.Error() != "exit status 1" {
				t.Errorf("it ended with %v, want exit status 1", err)
			}
			lines := daemon.Stdout.Lines()
			if len(lines) != 2 || lines[1] != "Portsentry is shutting down" {
				t.Errorf("standard output has %q, want the first line and the last", lines)
			}
			got := daemon.Stderr.Lines()
			if len(got) <= len(tt.stderr) || !slices.Equal(got[:len(tt.stderr)], tt.stderr) {
				t.Errorf("standard error has %q, want first %q and then what to do", got, tt.stderr)
			}
		})
	}
}

// A packet for a service is told of, and nothing else comes of it, unless -S says
// that services do not matter.
func TestServiceCheckOfPortSentry2(t *testing.T) {
	for name, tt := range map[string]struct{ arg, want string }{
		"checked":     {"--stealth", "Ignoring packet from 192.0.2.1 to destination port 11, a service is running"},
		"not checked": {"-S", scanLine(netip.MustParseAddr("192.0.2.1"), "TCP", "11", "TCP SYN/Normal scan")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &scenario{sentry: newSentry(t)}
			s.write(t, "portsentry.conf", portEleven)
			s.target.Listen(t, "tcp", 11)
			s.begin(t, tt.arg)
			s.scan(t, "-sS")
			s.daemon.Stdout.WaitLine(t, "192.0.2.1")
			s.end(t)
			lines := s.daemon.Stdout.Lines()
			if got := lines[len(lines)-2]; got != tt.want || countLines(s.daemon.Stdout, "192.0.2.1") != 1 {
				t.Errorf("standard output has %q, want %q once", lines, tt.want)
			}
		})
	}
}

// The history of former runs stays, and whom they blocked is remembered; without
// a file there is no memory.
func TestRestartOfPortSentry2(t *testing.T) {
	for name, tt := range map[string]struct {
		config string
		held   int // of four probes, to two runs
	}{
		"with a blocked file": {commonConfig, 3},
		"without":             {`HISTORY_FILE="portsentry.history"` + "\n", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &scenario{sentry: newSentry(t)}
			s.write(t, "portsentry.conf", tt.config+portEleven+block+trueRoute)
			held := 0
			for range 2 {
				s.begin(t, "--connect")
				for range 2 {
					s.probe(t, "tcp", s.target.IPv4, 11)
				}
				waitLines(t, s.daemon.Stdout, 2, "blocked: [true]")
				s.end(t)
				held += countLines(s.daemon.Stdout, "is already blocked")
			}
			if held != tt.held {
				t.Errorf("%d of four probes are of a blocked source, want %d", held, tt.held)
			}
			if got := strings.Count(s.read(t, "portsentry.history"), "\n"); got != 4 {
				t.Errorf("the history has %d records, want 4", got)
			}
		})
	}
}
