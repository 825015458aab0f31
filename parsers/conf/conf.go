// Package conf reads Portsnare's configuration. A file in any dialect becomes
// one [Config]; what is wrong with it comes back as [Faults] that name file,
// line and key, and what changes meaning as [Warning] values that do the same.
//
// Each dialect is a function from text to Config. Defaults and validation run
// once, after it. [Config.AppendNative] writes any Config in the native form.
package conf

import (
	"bytes"
	"cmp"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/portsnare/portsnare/detector"
)

// A Config is everything an administrator can set, whatever dialect the file
// was written in. [Load] returns it with the defaults filled in; before that,
// the zero value of a field stands for its default.
type Config struct {
	Mode       Mode     // where probes come from; default Stealth
	Interfaces []string // AllInterfaces or AllButLoopback alone, or names; default AllInterfaces

	// State is the file of what outlives the daemon: bans, and what outputs have
	// yet to take. It is an absolute path. Default: DefaultState.
	State string

	// Control is the socket for the administrator's tool: an absolute path, or
	// NoControl. Default: DefaultControl.
	Control string

	Detect Detect
	Ban    Ban
	Trap   TrapPorts
	Log    Log
	Events Events

	// OutputDirs are searched for the programs of output modules, in this order.
	// They are absolute. Default: none, which stands for where they are installed.
	OutputDirs []string

	// Outputs are the [output.NAME] blocks by NAME. Default: none.
	Outputs map[string]Output
}

// Where the daemon keeps what it knows and is asked, when nothing is set.
const (
	DefaultState   = "/var/lib/portsnare/state.db"
	DefaultControl = "/run/portsnare/control.sock"
)

// NoControl is a [Config.Control] that stands for no socket.
const NoControl = "none"

// Mode says where probes come from.
type Mode string

// The modes.
const (
	Stealth Mode = "stealth" // off the interfaces, before any service sees them
	Trap    Mode = "trap"    // from connections and datagrams to ports opened for them
	Both    Mode = "both"    // from either
)

// The words that stand for several interfaces in [Config.Interfaces].
const (
	AllInterfaces  = "all"
	AllButLoopback = "all-but-loopback"
)

// Detect says what is watched and when a probe counts.
type Detect struct {
	TCPPorts detector.PortSet // trap ports; default none, but one of the two sets is needed
	UDPPorts detector.PortSet

	// Ignore names the files that list sources never acted on, for
	// [LoadIgnore]. Default: none.
	Ignore []string

	Trigger          int  // probes from one source that make a scan; default 0, which like 1 is the first
	Broadcasts       bool // UDP datagrams to many are probes too, off the interfaces; default false
	SkipServiceCheck bool // report probes to ports where a local service listens; default false
	SkipLocalCheck   bool // act on probes that this host sent to itself; default false
}

// TrapPorts says which ports the modes [Trap] and [Both] open, and how they
// behave.
type TrapPorts struct {
	TCPPorts detector.PortSet // default: if both sets are empty, those of Detect
	UDPPorts detector.PortSet

	Banner string // sent to whoever connects to a trap port, as it is; default none
}

// Log says where PortSentry's lines go.
type Log struct {
	NoStdout  bool   // do not print the lines on standard output; default false
	Syslog    bool   // send them to the local syslog; default false
	SyslogTag string // the program name they carry there; default DefaultSyslogTag
	History   string // append a record of each to this file; default none
	Resolve   bool   // look up the name of a source; default false

	// PerSecond is how many probes have lines, and how many have records, in a
	// second. Default: 0, which is all.
	PerSecond int

	// ResolveWithin is how long a name may take; then the line carries the
	// address. It matters only with Resolve. Default: DefaultResolveWithin.
	ResolveWithin time.Duration

	Format        LineFormat    // of the lines, but not of the records; default LinesPortSentry2
	HistoryFormat HistoryFormat // of the records; default HistoryPortSentry2
}

// LineFormat is the form of the lines on standard output and in syslog.
type LineFormat string

// The forms of lines.
const (
	LinesPortSentry2 LineFormat = "portsentry2" // PortSentry 2's
	LinesPortSentry1 LineFormat = "portsentry1" // PortSentry 1.2's, for the log readers that know them
)

// HistoryFormat is the form of the records in the history file.
type HistoryFormat string

// The forms of history records.
const (
	HistoryPortSentry2 HistoryFormat = "portsentry2" // PortSentry 2's: the line behind a time stamp
	HistoryPortSentry1 HistoryFormat = "portsentry1" // PortSentry 1.2's, which stock Fail2Ban reads
)

// DefaultSyslogTag is the program name in syslog when none is set.
const DefaultSyslogTag = "portsnare"

// DefaultResolveWithin is how long a name may take when nothing is set.
const DefaultResolveWithin = time.Second

// Events says where JSON events go.
type Events struct {
	JSON string // a file, or "-" for standard output; default none
}

// Sniffed returns the ports to watch on the interfaces, which are none in mode
// [Trap].
func (c *Config) Sniffed() (tcp, udp detector.PortSet) {
	if c.Mode == Trap {
		return tcp, udp
	}
	return c.Detect.TCPPorts, c.Detect.UDPPorts
}

// Opened returns the ports to open as traps, which are none in mode [Stealth].
func (c *Config) Opened() (tcp, udp detector.PortSet) {
	switch {
	case c.Mode == Stealth:
		return tcp, udp
	case c.Trap.TCPPorts.Len() == 0 && c.Trap.UDPPorts.Len() == 0:
		return c.Detect.TCPPorts, c.Detect.UDPPorts
	}
	return c.Trap.TCPPorts, c.Trap.UDPPorts
}

// fillDefaults gives every field left at its zero value its default.
func (c *Config) fillDefaults() {
	c.Mode = cmp.Or(c.Mode, Stealth)
	if len(c.Interfaces) == 0 {
		c.Interfaces = []string{AllInterfaces}
	}
	c.State = cmp.Or(c.State, DefaultState)
	c.Control = cmp.Or(c.Control, DefaultControl)
	c.Ban.fillDefaults()
	c.Log.SyslogTag = cmp.Or(c.Log.SyslogTag, DefaultSyslogTag)
	c.Log.Format = cmp.Or(c.Log.Format, LinesPortSentry2)
	c.Log.HistoryFormat = cmp.Or(c.Log.HistoryFormat, HistoryPortSentry2)
	c.Log.ResolveWithin = cmp.Or(c.Log.ResolveWithin, DefaultResolveWithin)
}

//go:embed default.toml
var defaultNative string

// Default returns the configuration of a daemon that was given none: it
// watches every interface, reports, and bans nobody.
func Default() Config {
	c, _, err := dialect(parseNative).parse("default.toml", []byte(defaultNative))
	if err != nil {
		panic(fmt.Sprintf("embedded configuration: %v", err))
	}
	return c
}

// DefaultNative returns the commented native text behind [Default].
func DefaultNative() string { return defaultNative }

// maxFileSize bounds a configuration or ignore file. The largest sensible
// ignore list, ten thousand prefixes, is a fifth of it.
const maxFileSize = 1 << 20

// Load reads the configuration file at path. The dialect follows from the
// name: native if it ends in ".toml", PortSentry 2 in mode [Stealth] otherwise.
// An error is always a [Faults].
func Load(path string) (Config, []Warning, error) {
	if isNative(path) {
		return load(path, parseNative, func(string) string { return "" })
	}
	return LoadPortSentry2(path, Stealth)
}

// LoadPortSentry2 reads a configuration of PortSentry 2 for a program that was
// told the mode on its command line. An error is always a [Faults].
func LoadPortSentry2(path string, mode Mode) (Config, []Warning, error) {
	return load(path, portSentry2(mode), func(path string) string {
		return "Cannot open config file: " + path + "."
	})
}

// A dialect reads a text. What it finds goes to the diagnosis, and if that is a
// fault, the Config does not matter.
type dialect func(d *diagnosis, text []byte) Config

// load reads the file at path in the given dialect; unreadable returns what the
// program whose dialect it is says about a file that it cannot open.
func load(path string, read dialect, unreadable func(path string) string) (Config, []Warning, error) {
	text, err := readFile(path)
	if err != nil {
		fault := Fault{Place: Place{File: path}, Text: err.Error(), Err: err}
		if !errors.Is(err, errTooLarge) {
			fault.Upstream = unreadable(path)
		}
		return Config{}, nil, Faults{fault}
	}
	return read.parse(path, text)
}

// parse is [load] for a text already read; name is the file's name in faults
// and warnings.
func (read dialect) parse(name string, text []byte) (Config, []Warning, error) {
	d := newDiagnosis(name)
	c := read(d, text)
	c.fillDefaults()
	c.validate(d)
	if err := d.err(); err != nil {
		return Config{}, d.warnings, err
	}
	c.warn(d)
	return c, d.warnings, nil
}

func isNative(name string) bool { return strings.HasSuffix(name, ".toml") }

var errTooLarge = fmt.Errorf("larger than %d bytes; is it the right file?", maxFileSize)

// readFile reads a file of at most maxFileSize bytes. Its errors do not repeat
// the path.
//
// A byte order mark, as some editors write it, is left out.
func readFile(path string) ([]byte, error) {
	f, err := openFile(path)
	if err != nil {
		return nil, withoutPath(err)
	}
	defer f.Close()

	var text bytes.Buffer
	n, err := text.ReadFrom(io.LimitReader(f, maxFileSize+1))
	switch {
	case err != nil:
		return nil, withoutPath(err)
	case n > maxFileSize:
		return nil, errTooLarge
	}
	return bytes.TrimPrefix(text.Bytes(), []byte("\ufeff")), nil
}

// openFile opens a regular file, the null device, by which administrators say
// "none", or a pipe that is our standard input. Anything else could keep its
// reader waiting for ever.
func openFile(path string) (*os.File, error) {
	// Without O_NONBLOCK, to open a named pipe would wait for its writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case info.Mode().IsRegular(), path == os.DevNull:
		return f, nil
	case info.Mode().Type() == os.ModeNamedPipe && path == "/dev/stdin":
		return f, nil
	case info.IsDir():
		err = errors.New("is a directory")
	default:
		err = errors.New("not a regular file")
	}
	_ = f.Close() // only read: nothing can be lost
	return nil, err
}

// withoutPath strips the path from an error of package os: a [Place] names it.
func withoutPath(err error) error {
	if pathErr, ok := errors.AsType[*os.PathError](err); ok {
		return fmt.Errorf("%s: %w", pathErr.Op, pathErr.Err)
	}
	return err
}
