package cmdline

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/portsnare/portsnare/parsers/conf"
)

// A PortSentry2 is what a command line of PortSentry 2 asks for, with the
// defaults filled in. After Help or Version the rest of the line has not been
// looked at, and the other fields do not matter.
type PortSentry2 struct {
	Mode conf.Mode // conf.Stealth or, for --connect, conf.Trap

	// Interfaces are those to watch, as in [conf.Config]; in mode conf.Trap
	// they do not matter. Whether they exist is not asked.
	Interfaces []string

	Method     Method
	Stdout     bool   // write lines to standard output and standard error
	Syslog     bool   // write lines to syslog
	ConfigFile string // DefaultConfigFile unless the line names another
	Daemon     bool   // go into the background

	SkipLocalCheck   bool // act on probes that this host sent to itself
	SkipServiceCheck bool // report probes to ports where a local service listens

	Debug   bool // write debug lines
	Verbose bool // write verbose lines
	Help    bool // only print the usage, and exit with status 0
	Version bool // only print the version, and exit with status 0
}

// Method is how PortSentry 2 takes packets off the interfaces.
type Method string

// The methods.
const (
	Pcap Method = "pcap" // those of the chosen interfaces
	Raw  Method = "raw"  // those of all interfaces
)

// DefaultConfigFile is what both generations of PortSentry read.
const DefaultConfigFile = "/etc/portsentry/portsentry.conf"

// ParsePortSentry2 reads a command line of PortSentry 2.0.7, or of its
// successor, which has -S too. Program is what the line starts with, args what
// follows. Options act in their order, so that a fault counts only if it
// stands before -h and -V. An error is always an *[Error].
//
// As in PortSentry, -m takes anything that starts with the name of a method.
// Unlike it, -i takes "any" for ALL.
func ParsePortSentry2(program string, args []string) (PortSentry2, error) {
	c := PortSentry2{ConfigFile: DefaultConfigFile}
	s := scanner{program: program, options: portSentry2Options, args: args}
	for !c.Help && !c.Version {
		o, value, err := s.next()
		if err != nil {
			return PortSentry2{}, err
		}
		if o == nil {
			break
		}
		if o.set == nil {
			return PortSentry2{}, &Error{Stdout: unknownArgument(o.short)}
		}
		if err := o.set(&c, value); err != nil {
			return PortSentry2{}, err
		}
	}
	c.fillDefaults()
	return c, nil
}

// portSentry2Options are the options of the command line, and four letters that
// PortSentry hands to getopt without a use for them. With these it meets the
// words of PortSentry 1.2, such as -tcp.
var portSentry2Options = []option{
	{long: "stealth", set: func(c *PortSentry2, _ string) error { return c.setMode(conf.Stealth) }},
	{long: "connect", set: func(c *PortSentry2, _ string) error { return c.setMode(conf.Trap) }},
	{long: "interface", short: 'i', hasValue: true, set: (*PortSentry2).addInterface},
	{long: "method", short: 'm', hasValue: true, set: (*PortSentry2).setMethod},
	{long: "logoutput", short: 'l', hasValue: true, set: (*PortSentry2).addOutput},
	{long: "configfile", short: 'c', hasValue: true, set: (*PortSentry2).setConfigFile},
	flag("daemon", 'D', func(c *PortSentry2) *bool { return &c.Daemon }),
	flag("disable-local-check", 'L', func(c *PortSentry2) *bool { return &c.SkipLocalCheck }),
	flag("disable-service-check", 'S', func(c *PortSentry2) *bool { return &c.SkipServiceCheck }),
	flag("debug", 'd', func(c *PortSentry2) *bool { return &c.Debug }),
	flag("verbose", 'v', func(c *PortSentry2) *bool { return &c.Verbose }),
	flag("help", 'h', func(c *PortSentry2) *bool { return &c.Help }),
	flag("version", 'V', func(c *PortSentry2) *bool { return &c.Version }),
	{short: 't', hasValue: true},
	{short: 's', hasValue: true},
	{short: 'a', hasValue: true},
	{short: 'u', hasValue: true},
}

// flag returns an option that sets a field.
func flag(long string, short byte, field func(*PortSentry2) *bool) option {
	return option{long: long, short: short, set: func(c *PortSentry2, _ string) error {
		*field(c) = true
		return nil
	}}
}

// fillDefaults sets what no option has set, and what options settle together.
func (c *PortSentry2) fillDefaults() {
	c.Mode = cmp.Or(c.Mode, conf.Stealth)
	c.Method = cmp.Or(c.Method, Pcap)
	switch {
	case c.Method == Raw:
		c.Interfaces = []string{conf.AllInterfaces}
	case len(c.Interfaces) == 0:
		c.Interfaces = []string{conf.AllButLoopback}
	}
	if c.Daemon {
		c.Stdout, c.Syslog = false, true
	}
	if !c.Syslog {
		c.Stdout = true
	}
}

func (c *PortSentry2) setMode(mode conf.Mode) error {
	if c.Mode != "" {
		return refuse("Only one mode can be specified, Use only one of --stealth or --connect")
	}
	c.Mode = mode
	return nil
}

// maxInterfaceName is the longest name that Linux gives an interface.
const maxInterfaceName = 15

func (c *PortSentry2) addInterface(name string) error {
	if len(name) > maxInterfaceName {
		return refuse("Interface name " + name + " too long")
	}
	switch name {
	case "ALL", "any":
		name = conf.AllInterfaces
	case "ALL_NLO":
		name = conf.AllButLoopback
	}
	if len(c.Interfaces) > 0 && severalInterfaces(name) != severalInterfaces(c.Interfaces[0]) {
		return refuse("Only one interface type can be specified (ALL, ALL_NLO or interfaces)")
	}
	if !slices.Contains(c.Interfaces, name) {
		c.Interfaces = append(c.Interfaces, name)
	}
	return nil
}

// severalInterfaces returns name if it stands for several interfaces.
func severalInterfaces(name string) string {
	if name == conf.AllInterfaces || name == conf.AllButLoopback {
		return name
	}
	return ""
}

func (c *PortSentry2) setMethod(value string) error {
	for _, method := range []Method{Pcap, Raw} {
		if strings.HasPrefix(value, string(method)) {
			c.Method = method
			return nil
		}
	}
	return refuse("Invalid sentry method specified")
}

func (c *PortSentry2) addOutput(value string) error {
	switch value {
	case "stdout":
		c.Stdout = true
	case "syslog":
		c.Syslog = true
	default:
		return refuse("Invalid log output specified")
	}
	return nil
}

// maxPath is the longest path that Linux takes.
const maxPath = 4095

func (c *PortSentry2) setConfigFile(path string) error {
	if len(path) > maxPath {
		return refuse("Config file path too long")
	}
	c.ConfigFile = path
	return nil
}

// An Error is a command line that PortSentry 2 does not take. It ends with exit
// status 1, after both texts have been printed; either may be empty, and
// neither has a line end.
type Error struct {
	Stderr string // for standard error, first
	Stdout string // for standard output
}

// Error returns the text for standard error or, without one, that for standard
// output.
func (e *Error) Error() string { return cmp.Or(e.Stderr, e.Stdout) }

// refuse returns the error about a value that PortSentry does not take.
func refuse(text string) error { return &Error{Stderr: "Error: " + text} }

// unknownArgument returns what PortSentry says about an answer of getopt that
// it has no use for.
func unknownArgument(code byte) string {
	return fmt.Sprintf("Unknown argument, getopt returned character code 0%o", code)
}
