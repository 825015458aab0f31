package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/portsnare/portsnare/internal/version"
	"github.com/portsnare/portsnare/outputs"
	"github.com/portsnare/portsnare/outputs/outputapi"
	"github.com/portsnare/portsnare/parsers/conf"
)

const dialects = `A file whose name ends in .toml is in the native form; any other is read as
PortSentry 2 does (KEY="value").`

func newConfig() *cobra.Command {
	config := &cobra.Command{
		Use:   "config",
		Short: "Check and convert configuration files",
		Long:  "Check and convert configuration files.\n\n" + dialects,
		Args:  cobra.NoArgs,
		RunE:  showHelp,
	}
	config.AddCommand(newConfigCheck(), newConfigConvert(), newConfigDefault())
	return config
}

func newConfigCheck() *cobra.Command {
	var (
		o      dialectOptions
		asJSON bool
	)
	check := &cobra.Command{
		Use:   "check FILE...",
		Short: "Report every fault in configuration files",
		Long: `Read configuration files, and the ignore files that they name, as the daemon
would. Output modules are started and look at their settings, without acting on
them. For each file without faults "FILE: ok" is printed on standard output;
faults and warnings go to standard error, one a line, with file, line and key.

` + dialects + `

A file of PortSentry 1.2 means something only together with the modes that the
program is started in. With --modes or --debian-defaults, every FILE is read as
PortSentry 1.2 reads it.

The exit status is 0 if all files are usable, with or without warnings, 1 if
one has a fault, and 2 if the command line is not understood.`,
		Example: `  portsnare config check /etc/portsnare/portsnare.toml
  portsnare config check --json /etc/portsentry/portsentry.conf
  portsnare config check --debian-defaults /etc/default/portsentry portsentry.conf`,
		Args: func(cmd *cobra.Command, files []string) error {
			if err := cobra.MinimumNArgs(1)(cmd, files); err != nil {
				return err
			}
			return o.fit(cmd, files)
		},
		RunE: func(cmd *cobra.Command, files []string) error {
			show := printReport
			if asJSON {
				show = printJSONReport
			}
			return check(files, o.examine, show, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	check.Flags().BoolVar(&asJSON, "json", false, "print one JSON object per file on standard output, with its faults and warnings")
	o.addTo(check)
	return check
}

// dialectOptions choose the dialect of files.
type dialectOptions struct {
	modes          []conf.ModeWord
	debianDefaults string
}

// addTo gives a command the options.
func (o *dialectOptions) addTo(cmd *cobra.Command) {
	cmd.Flags().Func("modes", "the modes PortSentry 1.2 is started in: a `LIST` of tcp, stcp or atcp, and udp, sudp or audp", func(list string) (err error) {
		o.modes, err = conf.ParseModeWords(list)
		return err
	})
	cmd.Flags().StringVar(&o.debianDefaults, "debian-defaults", "", "take these modes from TCP_MODE and UDP_MODE in `FILE`, Debian's /etc/default/portsentry")
}

// fit returns an error unless the options and files fit together.
func (o *dialectOptions) fit(cmd *cobra.Command, files []string) error {
	byModes, byDefaults := cmd.Flags().Changed("modes"), cmd.Flags().Changed("debian-defaults")
	if byDefaults && o.debianDefaults == "" {
		return errors.New("--debian-defaults needs the name of a file")
	}
	if byModes && byDefaults {
		return errors.New("--modes and --debian-defaults exclude each other")
	}
	for _, file := range files {
		if (byModes || byDefaults) && strings.HasSuffix(file, ".toml") {
			return fmt.Errorf("--modes and --debian-defaults are for files of PortSentry 1.2; %s is native", file)
		}
	}
	return nil
}

// isPortSentry1 reports whether files are those of PortSentry 1.2.
func (o *dialectOptions) isPortSentry1() bool { return o.modes != nil || o.debianDefaults != "" }

// load reads file in the dialect that the options choose. All but the Config is
// empty if that is not PortSentry 1.2's.
func (o *dialectOptions) load(file string) (conf.PortSentry1, []conf.Warning, error) {
	if !o.isPortSentry1() {
		c, warnings, err := conf.Load(file)
		return conf.PortSentry1{Config: c}, warnings, err
	}
	modes, ofModes := o.modes, []conf.Warning(nil)
	if o.debianDefaults != "" {
		var err error
		if modes, ofModes, err = conf.LoadDebianDefaults(o.debianDefaults); err != nil {
			return conf.PortSentry1{}, ofModes, err
		}
	}
	c, warnings, err := conf.LoadPortSentry1(file, modes...)
	return c, append(ofModes, warnings...), err
}

func newConfigConvert() *cobra.Command {
	var o dialectOptions
	convert := &cobra.Command{
		Use:   "convert FILE",
		Short: "Print a configuration in the native form",
		Long: `Print a configuration in the native form (TOML) on standard output. No key is
lost. What may surprise gives a warning on standard error.

` + dialects + `

PortSentry takes interfaces and log outputs from its command line. What it does
without options is converted; where yours gives others, edit the result.

A file of PortSentry 1.2 means something only together with the modes that the
program is started in. With --modes or --debian-defaults, FILE is read as
PortSentry 1.2 reads it.`,
		Example: `  portsnare config convert /etc/portsentry/portsentry.conf >portsnare.toml
  portsnare config convert --modes tcp,sudp portsentry.conf
  portsnare config convert --debian-defaults /etc/default/portsentry portsentry.conf`,
		Args: func(cmd *cobra.Command, files []string) error {
			if err := cobra.ExactArgs(1)(cmd, files); err != nil {
				return err
			}
			return o.fit(cmd, files)
		},
		RunE: func(cmd *cobra.Command, files []string) error {
			c, warnings, err := o.load(files[0])
			for _, w := range warnings {
				fmt.Fprintln(cmd.ErrOrStderr(), "warning:", w)
			}
			if err != nil {
				return err
			}
			if len(c.Idle) > 0 {
				return c.Idle // the native form would be refused
			}
			_, err = cmd.OutOrStdout().Write(c.AppendNative(nil))
			return err
		},
	}
	o.addTo(convert)
	return convert
}

func newConfigDefault() *cobra.Command {
	return &cobra.Command{
		Use:     "default",
		Short:   "Print the configuration that is in force without a file",
		Long:    "Print the configuration that is in force without a file, with comments: a file\nto start from.",
		Example: `  portsnare config default >portsnare.toml`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := io.WriteString(cmd.OutOrStdout(), conf.DefaultNative())
			return err
		},
	}
}

// A report is what was found about one configuration file.
type report struct {
	File     string         `json:"file"`
	OK       bool           `json:"ok"`
	Faults   conf.Faults    `json:"faults,omitempty"`
	Warnings []conf.Warning `json:"warnings,omitempty"`
}

// errReported says that the faults have been printed already.
var errReported = errors.New("faults reported")

// check shows what examine reports on every file. It returns errReported if one
// has a fault.
func check(files []string, examine func(string) report, show func(report, io.Writer, io.Writer) error, stdout, stderr io.Writer) error {
	var faulty error
	for _, file := range files {
		r := examine(file)
		if !r.OK {
			faulty = errReported
		}
		if err := show(r, stdout, stderr); err != nil {
			return fmt.Errorf("print the report on %s: %w", file, err)
		}
	}
	return faulty
}

// examine reads a configuration file and the ignore files that it names.
func (o *dialectOptions) examine(file string) report {
	r := report{File: file}
	c, warnings, err := o.load(file)
	if err == nil {
		var ofIgnore []conf.Warning
		ofIgnore, err = o.examineIgnore(c.Detect.Ignore)
		warnings = append(warnings, ofIgnore...)
	}
	if err == nil && strings.HasSuffix(file, ".toml") {
		err = examineModules(file, &c.Config)
	}
	r.OK = err == nil
	r.Warnings = warnings
	errors.As(err, &r.Faults)
	return r
}

// examineModules starts each module of a configuration, and has it look at its
// settings without acting on them.
func examineModules(file string, c *conf.Config) error {
	log := logrus.New()
	log.SetOutput(io.Discard) // what is wrong, the error says
	var faults conf.Faults
	for _, name := range c.Modules() {
		place := conf.Place{File: file, Key: "output." + name}
		places, err := outputs.DefaultPlaces(outputs.Bundled()...)
		if len(c.OutputDirs) > 0 {
			places.Dirs = c.OutputDirs
		}
		if err == nil {
			block := c.Outputs[name]
			_, err = outputs.CheckModule(context.Background(), outputs.ModuleConfig{
				Name: name, Places: places, SHA256: block.SHA256, Settings: block.Settings, HostVersion: version.String(),
			}, logrus.NewEntry(log))
		}
		ofSettings, ok := errors.AsType[outputapi.Faults](err)
		switch {
		case ok:
			for _, f := range ofSettings {
				at := place
				at.Key = strings.TrimSuffix(at.Key+".settings."+f.Key, ".")
				faults = append(faults, conf.Fault{Place: at, Text: f.Text})
			}
		case err != nil:
			faults = append(faults, conf.Fault{Place: place, Text: err.Error(), Err: err})
		}
	}
	if len(faults) > 0 {
		return faults
	}
	return nil
}

// examineIgnore reads ignore files. For PortSentry 1.2, which goes on without
// them, their faults are warnings.
func (o *dialectOptions) examineIgnore(files []string) ([]conf.Warning, error) {
	if !o.isPortSentry1() {
		_, warnings, err := conf.LoadIgnore(files...)
		return warnings, err
	}
	_, warnings, err := conf.LoadPortSentry1Ignore(files...)
	faults, _ := errors.AsType[conf.Faults](err)
	for _, f := range faults {
		warnings = append(warnings, conf.Warning{Place: f.Place, Text: f.Text, Upstream: f.Upstream})
	}
	return warnings, nil
}

func printReport(r report, stdout, stderr io.Writer) error {
	for _, w := range r.Warnings {
		if _, err := fmt.Fprintln(stderr, "warning:", w); err != nil {
			return err
		}
	}
	if !r.OK {
		_, err := fmt.Fprintln(stderr, r.Faults)
		return err
	}
	_, err := fmt.Fprintf(stdout, "%s: ok\n", r.File)
	return err
}

func printJSONReport(r report, stdout, _ io.Writer) error {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(r); err != nil {
		return err
	}
	_, err := io.WriteString(stdout, b.String())
	return err
}
